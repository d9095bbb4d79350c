package inside

// ShimPath and GateDir are the paths of the shim and the gate in a machine. Both are
// bound there, read-only.
const (
	ShimPath = "/run/nomad-driver-nspawn/shim"
	GateDir  = "/run/nomad-driver-nspawn/gate"
)

// Socket is the name of the plugin's socket in the gate's directory.
const Socket = "socket"

// GateArg is the first argument of a program that must call [Main].
const GateArg = "gate"

// OneCPU limits Go's runtime to one CPU. It then starts faster, and the programs that
// lead to a payload need only one. The shim does not pass the variable on to the payload.
const (
	cpusVariable = "GOMAXPROCS"
	OneCPU       = cpusVariable + "=1"
)

// The shim sends one JSON value, [Hello], and the plugin answers with another,
// [Instructions]. The shim then reports a [Failure], or the connection ends, because
// execve(2) closes it. After a reboot of the guest, the shim may be older than the
// plugin. So fields may be added, but no field may change its meaning.

// Version is the version of the protocol.
const Version = 1

// Hello is the shim's first message. It means that systemd-nspawn has set up the
// container.
type Hello struct {
	Version int
}

// Instructions say what the shim executes. With them the payload begins.
type Instructions struct {
	// Init runs the image's init, as --boot does, with Argv as its arguments. Without
	// Init, Argv is the command; a command without a slash is looked up in PATH.
	Init bool
	Argv []string
	// Env is added to the variables that systemd-nspawn sets, and overrides them.
	Env []string
	// Dir is the working directory. The shim creates it for the user if it is missing. A
	// relative path is relative to the root.
	Dir string
	// User is USER or USER:GROUP, as names or numbers, as in docker. "" is root.
	User string
}

// Failure says why there is no payload.
type Failure struct {
	Code   int    // exit status as in shells: 127 if the command was not found, 126 if it cannot be executed
	Reason string // begins with the file that could not be executed
	Again  bool   // another attempt may succeed
}

// Error implements error.
func (f *Failure) Error() string { return f.Reason }

// MaxFailure is the largest size of a failure in bytes.
const MaxFailure = 16 << 10
