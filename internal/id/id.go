// Package id makes identifiers. It stands in for the standard library's uuid package until Go 1.27.
package id

import "github.com/google/uuid"

// New returns a UUIDv7: ordered by time, unique without coordination.
func New() string {
	u, err := uuid.NewV7()
	if err != nil {
		// The kernel's random source failed: nothing that needs to be unique can go on.
		panic("id: " + err.Error())
	}
	return u.String()
}
