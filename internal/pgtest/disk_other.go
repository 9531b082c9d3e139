//go:build !linux

package pgtest

func mount(string, int64) error { return errElsewhere }
func unmount(string) error      { return errElsewhere }
