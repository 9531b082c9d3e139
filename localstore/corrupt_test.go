package localstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/gate"
)

// image is a store's files, and what it must be found to hold.
type image struct {
	files map[string][]byte
	older map[string][]byte // the files at an earlier time
	ids   []string
	// allowed are the dumps of what may be read without anybody reporting anything.
	allowed map[string]bool
	// docs are the documents and checkpoints, noDocs those of a new index. Where damage takes an index back to an earlier
	// time, documents and checkpoints go back together, and the consumers go on from there.
	docs, noDocs string
}

const (
	victimSegment = 2 * blockSize
	victimDir     = "store"
)

// victim makes a small store of several segments: closed, or copied while it is open and its anchor some batches behind.
func victim(t testing.TB, clean bool) *image {
	t.Helper()
	mem := vfs.NewMem()
	s, err := openWith(victimDir, small(t, Options{FS: mem, Partitions: 2, noBackground: true}), victimSegment)
	if err != nil {
		t.Fatal(err)
	}
	d := s.Driver().(*driver) //nolint:forcetypeassert // opened above
	l := &ledger{}
	var cs []*committer
	for p := range 2 {
		c, err := newCommitter(s, l, p, "v")
		if err != nil {
			t.Fatal(err)
		}
		c.data = 10
		cs = append(cs, c)
	}
	v := &image{allowed: map[string]bool{}}
	documents := func(i int) {
		doc := millrace.Document{Collection: "docs", Partition: i % 2, ID: fmt.Sprint("d", i), Data: fmt.Appendf(nil, `{"n":%d}`, i), Keys: []string{fmt.Sprint(i % 7)}}
		v.must(t, s.CommitViews(t.Context(), []millrace.ViewBatch{{Consumer: "docs", Partition: i % 2, Checkpoint: 1, Puts: []millrace.Put{{Document: doc}}}}))
	}
	if v.noDocs, err = dumpDocs(s); err != nil {
		t.Fatal(err)
	}
	full := ""
	for i := range 22 {
		if err := cs[i%2].commit(); err != nil {
			t.Fatal(err)
		}
		switch i {
		case 7:
			for i := range 40 {
				documents(i)
			}
			if v.docs, err = dumpDocs(s); err != nil {
				t.Fatal(err)
			}
			v.must(t, d.db.Flush())
			v.must(t, d.writeAnchor(false))
			v.older = readFiles(t, mem)
		case 14: // to the anchor, after a crash
			v.must(t, d.writeAnchor(false))
		}
		v.ids = v.ids[:0]
		for _, o := range l.snapshot() {
			v.ids = append(v.ids, o.CommandID)
		}
		slices.Sort(v.ids)
		v.ids = slices.Compact(v.ids)
		if full, err = dump(s, v.ids); err != nil {
			t.Fatal(err)
		}
		if !clean && i >= 14 {
			v.allowed[full] = true
		}
	}
	v.allowed[full] = true
	if !clean {
		v.files = readFiles(t, mem)
	}
	v.must(t, s.Close())
	if clean {
		v.files = readFiles(t, mem)
	}
	return v
}

func (v *image) must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readFiles copies all files of a file system.
func readFiles(t testing.TB, mem *vfs.MemFS) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	var walk func(dir string)
	walk = func(dir string) {
		names, err := mem.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			path := mem.PathJoin(dir, name)
			if st, err := mem.Stat(path); err != nil {
				t.Fatal(err)
			} else if st.IsDir() {
				walk(path)
				continue
			}
			f, err := mem.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			files[path] = b
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	walk(victimDir)
	return files
}

// fileSystem makes a file system of files.
func fileSystem(t testing.TB, files map[string][]byte) *vfs.MemFS {
	t.Helper()
	mem := vfs.NewMem()
	for path, b := range files {
		if err := mem.MkdirAll(mem.PathDir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		f, err := mem.Create(path, journalCategory)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 0 {
			if _, err := f.Write(slices.Clone(b)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return mem
}

// with is the files with some replaced; nil removes.
func (v *image) with(changes map[string][]byte) map[string][]byte {
	files := maps.Clone(v.files)
	for path, b := range changes {
		if b == nil {
			delete(files, path)
		} else {
			files[path] = b
		}
	}
	return files
}

// tally counts what came of damage.
type tally struct {
	mu                                         sync.Mutex
	refused, reported, repaired, ordered, same int
}

func (c *tally) String() string {
	return fmt.Sprintf("%d refused at open, %d reported by verify or by the read, %d repaired from the journal, %d at the next open, %d without effect",
		c.refused, c.reported, c.repaired, c.ordered, c.same)
}

// examine opens a damaged store, verifies it and reads everything. Whatever nobody complains of must be right.
func (v *image) examine(t testing.TB, c *tally, what string, files map[string][]byte) {
	t.Helper()
	mem := fileSystem(t, files)
	s, err := openWith(victimDir, small(t, Options{FS: mem, Partitions: 2, noBackground: true, Fatal: func(error) {}}), victimSegment)
	if err != nil {
		c.note(&c.refused)
		return
	}
	noticed := v.judge(t, c, what, s)
	docs, derr := dumpDocs(s)
	if err := s.Close(); err != nil {
		t.Logf("%s: close: %v", what, err)
	}
	if _, err := mem.Stat(victimDir + "/" + rebuildName); err == nil {
		c.note(&c.ordered)
		v.madeAgain(t, what, mem)
		return
	}
	names, err := mem.List(victimDir)
	if err != nil {
		t.Error(err)
	}
	if slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "damaged") }) {
		c.note(&c.repaired)
		v.mayBeGone(t, what, docs, derr)
		return
	}
	switch _, hadIndex := files[victimDir+"/"+indexDir+"/LOCK"]; {
	case !hadIndex:
		v.mayBeGone(t, what, docs, derr)
	case derr != nil && !noticed:
		t.Errorf("%s: reading documents says %q, but verify has nothing to say", what, derr)
	case derr == nil && docs != v.docs && docs != v.noDocs:
		t.Errorf("%s: the documents are others, and reading them says nothing", what)
	}
}

// madeAgain opens a store in whose index a read met damage: the index is another one now, and nobody complains.
func (v *image) madeAgain(t testing.TB, what string, mem vfs.FS) {
	t.Helper()
	s, err := openWith(victimDir, small(t, Options{FS: mem, Partitions: 2, noBackground: true, Fatal: func(error) {}}), victimSegment)
	if err != nil {
		t.Errorf("%s: a read met damage in the index, and now the store is refused: %v", what, err)
		return
	}
	if err := s.Verify(context.Background(), func(problem string) { t.Errorf("%s: the index was made again: %s", what, problem) }); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	docs, derr := dumpDocs(s)
	v.mayBeGone(t, what, docs, derr)
	if err := s.Close(); err != nil {
		t.Errorf("%s: close: %v", what, err)
	}
	if _, err := mem.Stat(victimDir + "/" + rebuildName); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: the index is to be made once more: %v", what, err)
	}
}

// mayBeGone: an index that was made again has no documents; their consumers make them again.
func (v *image) mayBeGone(t testing.TB, what, docs string, err error) {
	t.Helper()
	if err != nil || docs != v.noDocs {
		t.Errorf("%s: the index was made again, but there are documents in it: %q, %v", what, docs, err)
	}
}

// dumpDocs are the documents by id and by key, and their checkpoint.
func dumpDocs(s *millrace.Store) (string, error) {
	var b strings.Builder
	for _, index := range []int{-1, 0} {
		for d, err := range s.Documents(context.Background(), millrace.Query{Collection: "docs", Index: index, Partition: -1}) {
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, "%d %s %v %s\n", d.Partition, d.ID, d.Keys, d.Data)
		}
	}
	c, err := s.Checkpoints(context.Background(), "docs")
	if err != nil {
		return "", err
	}
	fmt.Fprintln(&b, c.Positions)
	return b.String(), nil
}

func (c *tally) note(n *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
}

func (v *image) judge(t testing.TB, c *tally, what string, s *millrace.Store) (noticed bool) {
	t.Helper()
	problems := 0
	verr := s.Verify(context.Background(), func(string) { problems++ })
	got, derr := dump(s, v.ids)
	switch {
	case derr == nil && v.allowed[got]:
		if verr == nil && problems == 0 {
			c.note(&c.same)
		} else {
			c.note(&c.reported)
		}
	case derr != nil:
		// The read has reported it; then verify must, too.
		c.note(&c.reported)
		if verr == nil && problems == 0 {
			t.Errorf("%s: reading says %q, but verify has nothing to say", what, derr)
		}
	case verr != nil || problems > 0:
		c.note(&c.reported)
		t.Errorf("%s: verify notices (%d problems, %v), but wrong facts are read without an error", what, problems, verr)
	default:
		t.Errorf("%s: nobody notices, but the facts are others", what)
	}
	return verr != nil || problems > 0
}

// shared opens a store over an index that stays open: most damage to the journal does not touch it, and opening
// Pebble is nine tenths of opening a store. Recovery of a closed store writes nothing to its index.
func shared(mem *vfs.MemFS, db *pebble.DB, o Options) (*driver, error) {
	o.FS = mem
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	o.SegmentSize = victimSegment
	d := &driver{o: o, root: victimDir, stop: make(chan struct{}), reads: gate.New(), db: db}
	a, err := d.loadAnchor()
	if err != nil {
		return nil, err
	}
	segments, err := listSegments(mem, d.path(journalDir))
	if err != nil {
		return nil, err
	}
	if len(segments) == 0 {
		return nil, errors.New("no journal")
	}
	d.meta = a.meta
	d.files = &segmentFiles{fs: mem, dir: d.path(journalDir), open: map[uint64]*segmentFile{}}
	state, err := readApplied(db)
	if err != nil {
		return nil, err
	}
	if state.storeID != d.meta.ID {
		return nil, errors.New("index of another store")
	}
	r, err := d.recover(segments, a, state)
	if err != nil {
		return nil, err
	}
	return d, d.begin(r, segments, a)
}

// parallel runs jobs on both processors.
func parallel(n int, job func(i int)) {
	var wg sync.WaitGroup
	const workers = 2
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				job(i)
			}
		})
	}
	wg.Wait()
}

func flipped(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 1 << (at % 8)
	return b
}

func isIndex(path string) bool { return strings.Contains(path, "/"+indexDir+"/") }

func isLock(path string) bool { return strings.HasSuffix(path, lockName) }

// used is how much of a segment holds anything.
func used(b []byte) int {
	for n := len(b); n > 0; n-- {
		if b[n-1] != 0 {
			return n
		}
	}
	return 0
}

// facts are the paths of journal and anchor.
func (v *image) facts() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(v.files)), func(p string) bool { return isIndex(p) || isLock(p) })
}

func TestEveryFlippedBitOfJournalAndAnchorIsNoticedAfterACleanStop(t *testing.T) {
	v := victim(t, true)
	type flip struct {
		path string
		at   int
	}
	var flips []flip
	for _, path := range v.facts() {
		n := used(v.files[path])
		for at := range v.files[path] {
			// Every byte that holds anything, and the padding in samples.
			inBlock := at % blockSize
			header := strings.HasSuffix(path, anchorName) || at < blockSize
			filled := at < n && (!header || inBlock < segmentFixed+2*headSize || inBlock >= blockSize-checksumLength)
			if filled && (!brief() || at%16 == 3) || at%64 == 5 {
				flips = append(flips, flip{path, at})
			}
		}
	}
	c := &tally{}
	base := small(t, Options{Partitions: 2, noBackground: true, Fatal: func(error) {}})
	whole, err := openWith(victimDir, func() Options { o := base; o.FS = fileSystem(t, v.files); return o }(), victimSegment)
	if err != nil {
		t.Fatal(err)
	}
	db := whole.Driver().(*driver).db //nolint:forcetypeassert // opened above
	facts := map[string][]byte{}
	for _, path := range v.facts() {
		facts[path] = v.files[path]
	}
	parallel(len(flips), func(i int) {
		f := flips[i]
		files := maps.Clone(facts)
		files[f.path] = flipped(files[f.path], f.at)
		what := fmt.Sprintf("bit of %s:%d flipped", f.path, f.at)
		d, err := shared(fileSystem(t, files), db, base)
		if err != nil {
			c.note(&c.refused)
			if d != nil && d.j != nil {
				t.Errorf("%s: half open: %v", what, err)
			}
			return
		}
		v.judge(t, c, what, millrace.NewStore(d))
		d.j.shut()
		d.wait.Wait()
		d.files.close()
		if err := errors.Join(d.j.f.Close(), d.anchor.f.Close()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	})
	if err := whole.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d bits flipped: %s", len(flips), c)
	if c.refused == 0 || c.reported == 0 {
		t.Error("no damage was noticed at all")
	}
}

// coarse are the kinds of damage that take whole stretches of a file, or the file.
func (v *image) coarse() (changes []map[string][]byte, names []string) {
	add := func(name string, change map[string][]byte) {
		changes, names = append(changes, change), append(names, name)
	}
	paths := slices.Sorted(maps.Keys(v.files))
	for _, path := range paths {
		if isLock(path) {
			continue
		}
		b := v.files[path]
		for at := 0; at < len(b); at += 512 {
			z := slices.Clone(b)
			clear(z[at:min(at+512, len(z))])
			add(fmt.Sprintf("block at %s:%d zeroed", path, at), map[string][]byte{path: z})
			if at >= 512 { // a block that was written to the wrong place
				z := slices.Clone(b)
				copy(z[at:], b[at-512:at])
				add(fmt.Sprintf("block at %s:%d is the one before", path, at), map[string][]byte{path: z})
			}
		}
		for _, at := range cuts(path, b) {
			add(fmt.Sprintf("%s truncated to %d", path, at), map[string][]byte{path: b[:at:at]})
		}
		add(path+" removed", map[string][]byte{path: nil})
		if old, ok := v.older[path]; ok {
			add(path+" replaced by an older one", map[string][]byte{path: old})
		}
		for _, other := range paths {
			if other > path && !isLock(other) && isIndex(path) == isIndex(other) {
				add(path+" and "+other+" swapped", map[string][]byte{path: v.files[other], other: b})
				add(path+" overwritten by "+other, map[string][]byte{path: v.files[other]})
			}
		}
	}
	all := func(in func(string) bool) map[string][]byte {
		gone := map[string][]byte{}
		for _, p := range paths {
			if in(p) {
				gone[p] = nil
			}
		}
		return gone
	}
	add("the index removed", all(isIndex))
	add("the journal removed", all(func(p string) bool { return strings.Contains(p, "/"+journalDir+"/") }))
	add("all but the index removed", all(func(p string) bool { return !isIndex(p) }))
	return changes, names
}

// cuts are the places to truncate a file at: where records begin, and some others.
func cuts(path string, b []byte) []int {
	at := []int{0, 1, 16, 17, len(b) / 2, max(len(b)-1, 0)}
	for i := 100; i < len(b); i += 331 {
		at = append(at, i)
	}
	if strings.HasSuffix(path, ".mrj") {
		for off := blockSize; off < len(b); {
			h, _, ok := decodeBatchHeader(b[off:])
			if !ok {
				break
			}
			at = append(at, off, off+batchHeaderSize)
			for r := off + batchHeaderSize; r < off+batchHeaderSize+h.length; {
				rec, ok := splitRecord(b[r:], 0)
				if !ok {
					break
				}
				r += rec.size
				at = append(at, r)
			}
			off += h.size()
		}
	}
	slices.Sort(at)
	return slices.DeleteFunc(slices.Compact(at), func(n int) bool { return n >= len(b) })
}

func damageIsNoticed(t *testing.T, clean bool) {
	v := victim(t, clean)
	c := &tally{}
	v.examine(t, c, "no damage", v.files)
	if c.same != 1 {
		t.Fatalf("without any damage: %s", c)
	}
	changes, names := v.coarse()
	step := 1
	if brief() {
		step = 7
	}
	parallel(len(changes)/step, func(i int) { v.examine(t, c, names[i*step], v.with(changes[i*step])) })
	t.Logf("%d kinds of damage: %s", len(changes)/step, c)
}

func TestZeroedTruncatedSwappedMissingAndOldFilesAreNoticedAfterACleanStop(t *testing.T) {
	damageIsNoticed(t, true)
}

func TestZeroedTruncatedSwappedMissingAndOldFilesAreNoticedAfterACrash(t *testing.T) {
	damageIsNoticed(t, false)
}

// flipSome flips bits here and there and opens the store with everything that belongs to it.
func flipSome(t *testing.T, clean bool, in func(path string) bool, every int) {
	v := victim(t, clean)
	c := &tally{}
	type flip struct {
		path string
		at   int
	}
	var flips []flip
	for _, path := range slices.Sorted(maps.Keys(v.files)) {
		if in(path) {
			for at := every / 2; at < len(v.files[path]); at += every {
				flips = append(flips, flip{path, at})
			}
		}
	}
	parallel(len(flips), func(i int) {
		f := flips[i]
		v.examine(t, c, fmt.Sprintf("bit of %s:%d flipped", f.path, f.at), v.with(map[string][]byte{f.path: flipped(v.files[f.path], f.at)}))
	})
	t.Logf("%d bits flipped: %s", len(flips), c)
}

func TestFlippedBitsOfTheIndexAreNoticedOrRepaired(t *testing.T) {
	every := 9
	if brief() {
		every = 97
	}
	flipSome(t, true, isIndex, every)
}

func TestFlippedBitsAfterACrashAreNoticedUpToTheAnchor(t *testing.T) {
	every := 37
	if brief() {
		every = 211
	}
	flipSome(t, false, func(p string) bool { return !isLock(p) }, every)
}

func TestMissingIndexIsMadeAgainFromTheJournal(t *testing.T) {
	for _, clean := range []bool{true, false} {
		v := victim(t, clean)
		files := maps.Clone(v.files)
		maps.DeleteFunc(files, func(p string, _ []byte) bool { return isIndex(p) })
		c := &tally{}
		v.examine(t, c, "the index removed", files)
		if c.same != 1 {
			t.Errorf("clean %v: %s", clean, c)
		}
	}
}
