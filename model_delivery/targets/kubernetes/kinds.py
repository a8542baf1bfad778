"""What every target in a cluster uses."""

from __future__ import annotations

from model_delivery.values import Kind

CONFIG_MAP = Kind("ConfigMap", "", "v1", "configmaps", steady=True)
SERVICE = Kind("Service", "", "v1", "services", steady=True)
CLAIM = Kind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims")
JOB = Kind("Job", "batch", "v1", "jobs", foreground=True, constant=True)
HTTP_ROUTE = Kind("HTTPRoute", "gateway.networking.k8s.io", "v1", "httproutes", optional=True)
SHARED = (CONFIG_MAP, SERVICE, JOB, HTTP_ROUTE)
POD = Kind("Pod", "", "v1", "pods")
EVENT = Kind("Event", "", "v1", "events")
SECRET = Kind("Secret", "", "v1", "secrets")
GATEWAY = Kind("Gateway", "gateway.networking.k8s.io", "v1", "gateways")
ENDPOINT_SLICE = Kind("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices")
