package container

import "golang.org/x/sys/unix"

// Descriptors that package enter starts the shim with, above its own stdio. With TTY
// the three of the process's stdio are closed. FDGroup is the cgroup that the shim is started
// in, FDExecutable and those from FDJoins on are for nsenter(1) alone.
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

// Confinement is what a process of the machine has less than one of the host.
type Confinement struct {
	Bounding   uint64
	NoNewPrivs bool
	Filters    [][]byte // seccomp programs, oldest first, as the kernel has them
	Limits     []Limit
}

// Limit is a resource limit (getrlimit(2)).
type Limit struct {
	Resource int
	Value    unix.Rlimit
}

// Reply is what the shim answers: first its own PID, then that of the process, with the
// terminal attached, or an error; then, if need be, why the process cannot
// execute the command.
type Reply struct {
	Pid     int
	Error   string
	Failure string
	Code    int
}
