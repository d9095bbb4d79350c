// Package thread runs work on threads whose namespaces are not the process's.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs work on a thread of its own, which ends with the work. Nothing else runs on the
// thread, so that work may join namespaces or make new ones. File descriptors that work
// opens stay open.
func Run(work func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// Go never ends the main thread, and /proc/self shows the main thread's
		// namespaces. Hold it while another thread does the work.
		if unix.Gettid() == unix.Getpid() {
			result <- Run(work)
			runtime.UnlockOSThread()
			return
		}
		result <- work() // Still locked: the runtime ends the thread with the goroutine.
	}()
	return <-result
}
