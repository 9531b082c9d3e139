package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows how far a long command is: a bar where a person looks at a terminal, a line for each tenth elsewhere,
// nothing where quiet is asked for. It is safe for use by several goroutines.
type progress struct {
	mu    sync.Mutex
	out   io.Writer // of the lines; nil with a bar or with nothing
	what  string
	total int
	done  int
	tenth int

	bars *mpb.Progress
	bar  *mpb.Bar
}

// newProgress starts to show the progress of total things, such as "invoices".
func newProgress(out io.Writer, what string, total int, quiet bool) *progress {
	p := &progress{what: what, total: total}
	switch {
	case quiet || total <= 0:
	case isTerminal(out):
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(40))
		p.bar = p.bars.AddBar(int64(total),
			mpb.PrependDecorators(decor.Name(what+" "), decor.CountersNoUnit("%d/%d")),
			mpb.AppendDecorators(decor.Percentage(), decor.Name(" "), decor.AverageSpeed(0, "%.0f/s"), decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)),
		)
	default:
		p.out = out
	}
	return p
}

// isTerminal says whether a person looks at the output. CI and TERM=dumb say no.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && os.Getenv("CI") == "" && os.Getenv("TERM") != "dumb" && cwriter.IsTerminal(int(f.Fd()))
}

// set says how many are done.
func (p *progress) set(done int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = min(done, p.total)
	if p.bar != nil {
		p.bar.SetCurrent(int64(p.done))
	}
	if p.out == nil {
		return
	}
	if tenth := p.done * 10 / p.total; tenth > p.tenth {
		p.tenth = tenth
		_, _ = fmt.Fprintf(p.out, "%3d %%  %d of %d %s\n", 10*tenth, p.done, p.total, p.what) // nobody reads it: nobody to tell
	}
}

// end takes the bar off, complete or not, so that what is printed next stands on a line of its own.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar == nil {
		return
	}
	if p.done < p.total {
		p.bar.Abort(false)
	}
	p.bars.Wait()
	p.bar = nil
}

// laterProgress is the progress of what follows on something else, in a number that is known then.
type laterProgress struct {
	out    io.Writer
	what   string
	quiet  bool
	before *progress // ends when this one begins
	own    *progress
}

func (p *laterProgress) set(done, of int) {
	if p.own == nil {
		p.before.end()
		p.own = newProgress(p.out, p.what, of, p.quiet)
	}
	p.own.set(done)
}

func (p *laterProgress) end() {
	if p.own != nil {
		p.own.end()
	}
}
