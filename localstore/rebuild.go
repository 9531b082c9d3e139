package localstore

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/millrace-io/millrace"
)

// loadIndex opens Pebble. An index that cannot be opened is put aside, and a new one is made from the journal:
// everything in it follows from there.
func (d *driver) loadIndex() (applied, error) {
	path := d.path(indexDir)
	ordered, err := d.rebuildOrdered()
	if err != nil {
		return applied{}, err
	}
	var state applied
	if ordered {
		err = errors.New("reads met damage in it before")
	} else {
		if state, err = d.openIndex(path); err == nil {
			return state, nil
		}
		if d.db != nil {
			_ = d.db.Close() // it is damaged and is put aside
			d.db = nil
		}
		if !errors.Is(err, millrace.ErrCorrupt) {
			return state, err
		}
	}
	aside := path + ".damaged-" + d.o.Now().UTC().Format("20060102T150405.000000000")
	d.o.Logger.Warn("the index is damaged; it is put aside and made again from the journal", "aside", aside, "error", err)
	d.o.OnRepair(fmt.Sprintf("the index was damaged (%v); it is put aside as %s and made again from the journal", err, aside), false)
	// The folder is gone where a crash came between the two steps below.
	if err := d.o.FS.Rename(path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return state, fmt.Errorf("put the damaged index aside: %w", err)
	}
	if err := syncDir(d.o.FS, d.root); err != nil {
		return state, err
	}
	if ordered {
		if err := d.o.FS.Remove(d.path(rebuildName)); err != nil {
			return state, fmt.Errorf("remove %s: %w", rebuildName, err)
		}
	}
	return d.openIndex(path)
}

// rebuildOrdered says whether reads met damage in the index when the store was last open.
func (d *driver) rebuildOrdered() (bool, error) {
	switch _, err := d.o.FS.Stat(d.path(rebuildName)); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look for %s: %w", rebuildName, err)
	}
}

// orderRebuild makes the next Open make the index again. The reads that need what is damaged fail until then; all others
// go on.
func (d *driver) orderRebuild() {
	d.rebuild.Do(func() {
		f, err := d.o.FS.Create(d.path(rebuildName), journalCategory)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close(), syncDir(d.o.FS, d.root))
		}
		if err != nil {
			d.o.Logger.Error("cannot note that the index is damaged; remove its folder by hand", "error", err)
			return
		}
		d.o.Logger.Warn("the index is made again from the journal at the next start")
	})
}

func (d *driver) openIndex(path string) (applied, error) {
	db, err := openIndex(path, &d.o, d.fail, d.orderRebuild)
	if err != nil {
		return applied{}, err
	}
	d.db = db
	state, err := readApplied(db)
	if err != nil {
		return state, err
	}
	if state.storeID != "" && state.storeID != d.meta.ID {
		return state, fmt.Errorf("%w: index belongs to another store", millrace.ErrCorrupt)
	}
	return state, nil
}
