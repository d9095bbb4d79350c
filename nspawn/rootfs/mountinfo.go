package rootfs

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of the mount table.
type mount struct {
	id     uint64
	point  string
	fsType string
}

// mountTable reads the mounts the calling thread sees.
func mountTable() ([]mount, error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	var table []mount
	for line := range strings.Lines(string(text)) {
		if m, ok := parseMount(line); ok {
			table = append(table, m)
		}
	}
	return table, nil
}

// parseMount takes apart "ID parent major:minor root point options [tag…] -
// type source options" (proc_pid_mountinfo(5)).
func parseMount(line string) (mount, bool) {
	head, tail, _ := strings.Cut(line, " - ")
	fields, typed := strings.Fields(head), strings.Fields(tail)
	if len(fields) < 6 || len(typed) < 1 {
		return mount{}, false
	}
	id, err := strconv.ParseUint(fields[0], 10, 64)
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	return mount{id: id, point: unescape.Replace(fields[4]), fsType: typed[0]}, err == nil
}

// mountIn returns where something is mounted at or below dir, an absolute path
// without symbolic links; "" if nowhere.
func mountIn(dir string) (string, error) {
	table, err := mountTable()
	if err != nil {
		return "", err
	}
	for _, m := range table {
		if m.point == dir || strings.HasPrefix(m.point, dir+"/") {
			return m.point, nil
		}
	}
	return "", nil
}

// Mount is something that is mounted.
type Mount struct {
	Path   string // relative to a directory
	FSType string
}

// MountsBelow returns what is mounted below dir, an absolute path without
// symbolic links, in the order of mounting.
func MountsBelow(dir string) (below []Mount, err error) {
	table, err := mountTable()
	for _, m := range table {
		if path, ok := strings.CutPrefix(m.point, dir+"/"); ok {
			below = append(below, Mount{Path: path, FSType: m.fsType})
		}
	}
	return below, err
}

// fsType returns the type of the file system path is on, or "unknown".
func fsType(path string) string {
	var stat unix.Statx_t
	table, err := mountTable()
	if err != nil || unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &stat) != nil {
		return "unknown"
	}
	for _, m := range table {
		if m.id == stat.Mnt_id {
			return m.fsType
		}
	}
	return "unknown"
}
