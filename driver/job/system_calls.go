package job

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

// systemCallNames are those of Linux 6.12, of all architectures that we build for, and
// the groups of systemd 252, a name a line, sorted. systemd-nspawn leaves out what it
// does not know, without a word to the task.
//
//go:embed system_calls.txt
var systemCallNames string

// systemCall checks a name to allow or, with "~", to forbid.
func systemCall(at, name string) error {
	_, known := slices.BinarySearch(strings.Fields(systemCallNames), strings.TrimPrefix(name, "~"))
	if name == "" || known {
		return nil
	}
	return fmt.Errorf("%s: %q is neither a system call nor a group of systemd.exec(5), as @keyring, or one to forbid, as ~@clock", at, name)
}
