package feed

// Unrationed has all pauses between attempts be taken in full, for the test that shows what comes of it.
func Unrationed(r *Runner) { r.unrationed = true }

// Unheld has the events behind one that failed be handled all the same, for the test that shows what comes of it.
func Unheld(r *Runner) { r.unheld = true }

// Singly has a batch that failed be taken event by event, for the test that shows what comes of it.
func Singly(r *Runner) { r.singly = true }
