// Package api holds the OpenAPI document of Millrace, so that the binary serves the very file that people read.
package api

import _ "embed"

// OpenAPI is the document as YAML. It is kept by hand, and held to the server by the tests of package httpapi.
//
//go:embed openapi.yaml
var OpenAPI []byte
