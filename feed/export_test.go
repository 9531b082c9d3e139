package feed

// Unrationed has all pauses between attempts be taken in full, for the test that shows what comes of it.
func Unrationed(r *Runner) { r.unrationed = true }
