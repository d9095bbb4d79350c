package container

import "golang.org/x/sys/unix"

// File descriptors with which package enter starts the shim, in addition to its own
// stdio. With TTY, the three for the process's stdio are closed. FDGroup is the cgroup in
// which the shim is started. FDExecutable, and FDJoins and following, are for nsenter(1)
// only.
const (
	FDInstructions = 3 + iota
	FDReplies
	FDRoot
	FDMount
	FDPidns
	FDStdin
	FDStdout
	FDStderr
	FDGroup
	FDExecutable
	FDJoins
)

// Instructions say what the shim does.
type Instructions struct {
	Argv, Env   []string
	Dir, User   string
	TTY         bool
	Confinement Confinement
}

// Confinement holds the restrictions of the machine's processes.
type Confinement struct {
	Bounding   uint64
	NoNewPrivs bool
	Filters    [][]byte // seccomp programs in the kernel's format, oldest first
	Limits     []Limit
}

// Limit is a resource limit (getrlimit(2)).
type Limit struct {
	Resource int
	Value    unix.Rlimit
}

// Reply is a message of the shim. The first one has the shim's own PID. The second one
// has the PID of the process, with the terminal attached, or an error. A third one is
// sent only if the process cannot execute the command, and says why.
type Reply struct {
	Pid     int
	Error   string
	Failure string
	Code    int
}
