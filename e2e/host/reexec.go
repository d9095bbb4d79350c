package host

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// A host needs three helper processes. Each is the calling program again,
// told apart by its name (argv[0]), so that test binaries and the command
// work alike and nothing has to be built or installed first.
const (
	superviseName = "disposable-host-supervise"
	bootName      = "disposable-host-boot"
	enterName     = "disposable-host-enter"
)

// init takes over the process if it is one of the helpers. They stay on the main thread,
// because the namespaces they join and the parent-death signals of their children belong
// to the thread. Running init on the main thread is not enough: only if the thread is
// locked does Go start other threads from a template thread, and a thread that has entered
// a pid namespace cannot start any.
func init() {
	run, ok := map[string]func([]string) int{
		superviseName: superviseMain,
		bootName:      bootMain,
		enterName:     enterMain,
	}[os.Args[0]]
	if ok {
		runtime.LockOSThread()
		// Not os.Exit: with the race detector, it waits for a second.
		syscall.Exit(run(os.Args[1:]))
	}
}

// helper returns a command that starts the calling program as the helper name.
func helper(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = name
	return cmd
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
