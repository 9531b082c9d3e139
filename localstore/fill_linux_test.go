package localstore

import (
	"path/filepath"
	"testing"
)

// Where a file cannot be opened, that is an error, not a file system without direct access.
func TestFillReportsFaults(t *testing.T) {
	if done, err := fillDirect(filepath.Join(t.TempDir(), "none"), fillChunk); done || err == nil {
		t.Errorf("%v %v", done, err)
	}
}
