// Command payload prints when its first instruction ran, in nanoseconds of
// CLOCK_MONOTONIC. That clock is the same inside and outside of a machine: only a time
// namespace would change it (time_namespaces(7)).
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		fmt.Fprintln(os.Stderr, "read clock:", err)
		os.Exit(1)
	}
	fmt.Println(now.Nano())
}
