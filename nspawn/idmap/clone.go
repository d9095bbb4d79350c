//go:build amd64 || arm64

package idmap

const haveClone = true

// cloneAndExit calls clone(2). The child only exits, and does not touch the memory.
// cloneAndExit returns the child's PID, or a negative errno.
func cloneAndExit(flags uintptr) int
