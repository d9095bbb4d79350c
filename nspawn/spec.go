package nspawn

// Mode says what the first processes of a machine are.
type Mode string

// The modes of a machine.
const (
	// Boot runs the image's init as PID 1 (--boot); Command holds its arguments.
	Boot Mode = "boot"
	// ProcessTwo runs Command as PID 2 below nspawn's stub init (--as-pid2),
	// which reaps orphans.
	ProcessTwo Mode = "process-two"
	// ProcessOne runs Command itself as PID 1.
	ProcessOne Mode = "process-one"
)

// Spec is all that is needed to run a machine. It is plain data: the command
// line and the unit's properties are pure functions of it.
type Spec struct {
	Machine       string            // name, see MachineName
	Description   string            // of the unit
	JournalFields map[string]string // added to each journal entry of the unit
	UUID          string            // machine ID of the container, a UUID

	Root             Root
	Mode             Mode
	Command          []string // payload with arguments, or arguments of the image's init
	Environment      map[string]string
	WorkingDirectory string // absolute; "" is the image's root
	User             string // as docker takes it: name or UID, optionally ":" group or GID
	Hostname         string // "" is the machine's name
	Capabilities     []string
	LinkJournal      string // a value of --link-journal=
	ResolvConf       string // a value of --resolv-conf=
	NotifyReady      bool   // the payload sends READY=1; a booted system always does
	LogToJournal     bool   // the output goes to the host's journal, not to Streams

	Binds    []Bind
	Overlays []Overlay
	Network  Network
	Limits   Limits
}

// Root is the root file system of a machine.
type Root struct {
	// Image is the directory tree to run, an absolute path on the host; or Disk
	// that of a raw disk image or block device, or Stored the digest of an image
	// in the store. A disk is mounted, and Image is where, when the machine is
	// started.
	Image, Disk, Stored string
	// DiskPolicy is the image policy of a disk, see disk.Image.
	DiskPolicy string
	// InPlace runs Image itself, exclusively, instead of a copy-on-write
	// layer over it that is discarded with the machine.
	InPlace bool
	// ReadOnly mounts the root read-only.
	ReadOnly bool
	// Volatile is a value of --volatile=. With a copy-on-write root, "overlay"
	// has nothing to add.
	Volatile string
	// Tmpfs are mounted in the machine, PATH or PATH:OPTIONS (--tmpfs=), and
	// Inaccessible are paths that are hidden (--inaccessible=).
	Tmpfs, Inaccessible []string
	// UserNamespace gives the machine a UID range of its own.
	UserNamespace bool
	// UIDBase is the first UID of that range. It is chosen when the machine
	// is started, see idmap.Ranges.
	UIDBase uint32
	// Writable is what takes the changes of a copy-on-write root.
	Writable Writable
	// Files are written into a copy-on-write root before the start, by
	// absolute path. A Files entry with Keep set does not replace what the
	// image has.
	Files []File
}

// Writable says where what a machine writes goes, and how much that may be. The zero
// value is the file system of the driver's state, without a limit.
type Writable struct {
	Max      uint64 // bytes; needed in memory, else 0 is no limit
	InMemory bool   // which counts as the machine's
}

// File is a small file of the root file system, mode 0644, owned by its root.
type File struct {
	Path    string
	Content string
	Keep    bool
}

// Network says which network the machine sees. The zero value is the host's.
type Network struct {
	// Namespace is the path of an existing network namespace to run in.
	Namespace string
	// Veth gives the machine a network of its own, connected to the host by
	// a veth pair (--network-veth).
	Veth bool
	// Ports are forwarded from the host; they need Veth.
	Ports []Port
}

// Port forwards a port of the host, for TCP and UDP.
type Port struct {
	Host, Container int
}

// Limits bound what the machine may use. Zero values set no limit.
type Limits struct {
	MemoryMax   uint64 // bytes
	MemoryLow   uint64 // bytes that are protected from reclaim
	CPUWeight   uint64 // 1 to 10000, see systemd.resource-control(5)
	AllowedCPUs []int  // cores; none means all
}
