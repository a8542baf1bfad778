// Package crds only says which version of the Gateway API's definitions is used.
package crds
