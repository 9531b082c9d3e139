// Package api holds the OpenAPI documents of Millrace: of what it serves, so that the binary serves the very file that people
// read, and of what it asks payment gateways.
package api

import _ "embed"

// OpenAPI is the document as YAML. It is kept by hand, and held to the server by the tests of package httpapi.
//
//go:embed openapi.yaml
var OpenAPI []byte

// PaymentGateway is the document of payment gateways as YAML. It is kept by hand, and held to what is asked and answered by the
// tests of package payment.
//
//go:embed payment-gateway.yaml
var PaymentGateway []byte
