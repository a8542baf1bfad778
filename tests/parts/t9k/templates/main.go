// Fills Go templates as T9k does with a runtime's strings: {"parameters": {…}, "texts": […]} on standard input, a list of texts on standard output.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

func main() {
	var given struct {
		Parameters map[string]string
		Texts      []string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		fail(err)
	}
	for at, text := range given.Texts {
		parsed, err := template.New("").Parse(text)
		if err != nil {
			fail(err)
		}
		var filled strings.Builder
		if err := parsed.Execute(&filled, given.Parameters); err != nil {
			fail(err)
		}
		given.Texts[at] = filled.String()
	}
	if err := json.NewEncoder(os.Stdout).Encode(given.Texts); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
