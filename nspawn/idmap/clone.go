//go:build amd64 || arm64

package idmap

const haveClone = true

// cloneAndExit is clone(2); the child does nothing but exit, and does not touch
// the memory. It returns the child's PID, or an errno below 0.
func cloneAndExit(flags uintptr) int
