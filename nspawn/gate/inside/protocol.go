package inside

// Where the shim and the gate are in a machine. Both are bound there, read-only.
const (
	ShimPath = "/run/nomad-driver-nspawn/shim"
	GateDir  = "/run/nomad-driver-nspawn/gate"
)

// Socket is the name of the plugin's socket in the gate's directory.
const Socket = "socket"

// GateArg is the first argument with which the program has to call [Main].
const GateArg = "gate"

// Go's runtime starts sooner on one CPU, and the programs that lead to a payload need no
// more. The shim keeps the variable to itself.
const (
	cpusVariable = "GOMAXPROCS"
	OneCPU       = cpusVariable + "=1"
)

// The shim and the plugin each send one JSON value: [Hello], then [Instructions]. The
// shim answers with a [Failure], or with the end of the connection, which execve(2)
// closes. A guest that reboots may run an older shim than the plugin's own: fields may
// be added, and none may change its meaning.

// Version is the version of the protocol.
const Version = 1

// Hello is the shim's first word: systemd-nspawn has set up the container.
type Hello struct {
	Version int
}

// Instructions say what the shim becomes. With them the payload begins.
type Instructions struct {
	// Init runs the image's init, as --boot does, and Argv holds its arguments.
	// Without Init, Argv is the command; one without a slash is looked for in PATH.
	Init bool
	Argv []string
	// Env is added to the variables that systemd-nspawn sets, and replaces them.
	Env []string
	// Dir is the working directory. The shim makes it, for the user, if it is missing.
	// A relative one is relative to the root.
	Dir string
	// User is USER or USER:GROUP, as names or numbers, as docker has it. "" is root.
	User string
}

// Failure says why there is no payload.
type Failure struct {
	Code   int    // exit status of shells: 127 for what is not there, 126 for what cannot be executed
	Reason string // begins with what could not be executed
	Again  bool   // whether another try may succeed
}

// Error implements error.
func (f *Failure) Error() string { return f.Reason }

// MaxFailure is the largest size of a failure in bytes.
const MaxFailure = 16 << 10
