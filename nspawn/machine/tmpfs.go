package machine

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Tmpfs is a file system in memory that systemd-nspawn mounts (--tmpfs=).
type Tmpfs struct {
	Destination string
	Options     []string // see Check
}

// tmpfsFlags are the options without a value that concern nothing but the new mount.
var tmpfsFlags = []string{
	"async", "atime", "diratime", "exec", "noatime", "nodev", "nodiratime", "noexec", "norelatime", "nostrictatime", "nosuid", "noswap",
	"relatime", "ro", "rw", "strictatime", "suid", "sync",
}

// tmpfsValues are the options of tmpfs(5) with a value, and what the value looks like.
var tmpfsValues = map[string]*regexp.Regexp{
	"gid":       regexp.MustCompile(`^[0-9]{1,10}$`),
	"mode":      regexp.MustCompile(`^[0-7]{1,4}$`),
	"nr_blocks": regexp.MustCompile(`^[0-9]{1,19}[kKmMgGtT]?$`),
	"nr_inodes": regexp.MustCompile(`^[0-9]{1,19}[kKmMgGtT]?$`),
	"size":      regexp.MustCompile(`^[0-9]{1,19}[kKmMgGtT%]?$`),
	"uid":       regexp.MustCompile(`^[0-9]{1,10}$`),
}

// Check returns an error if systemd-nspawn would do anything else than mount a new file
// system in memory.
//
// systemd-nspawn hands the options to mount(2) as root of the host. With "remount" it
// would change what is mounted there: make a directory writable that the machine may only
// read, or resize the host's /run, which holds the gate.
func (t Tmpfs) Check() error {
	for _, option := range t.Options {
		name, value, hasValue := strings.Cut(option, "=")
		pattern, known := tmpfsValues[name]
		switch {
		case hasValue && known && pattern.MatchString(value), !hasValue && slices.Contains(tmpfsFlags, name):
		case hasValue && known:
			return fmt.Errorf("%q is not a value of the option %s of tmpfs(5)", value, name)
		default:
			return fmt.Errorf("%q is not an option of a file system in memory that a machine can have, such as size=64M, mode=0755, ro or noexec", option)
		}
	}
	return nil
}

func (t Tmpfs) arg() string {
	return "--tmpfs=" + escapePath(t.Destination) + ":" + strings.Join(t.Options, ",")
}
