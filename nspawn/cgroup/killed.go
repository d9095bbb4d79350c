package cgroup

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
)

// maxRecord is the size of a read of /dev/kmsg that takes every record
// (CONSOLE_EXT_LOG_MAX of Linux). maxRecords ends the search if the log is written to all
// the time; the kernel's own buffer has fewer by default.
const (
	maxRecord  = 8192
	maxRecords = 1 << 17
)

// LastKilled returns the name of the last process of a machine that the kernel has killed
// because memory ran out, or "" if its log does not say so (any more). The process has
// chosen the name itself.
func LastKilled(name string) string {
	log, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(log)
	record, killed := make([]byte, maxRecord), ""
	for range maxRecords {
		n, err := unix.Read(log, record) // one record, whatever the size of the buffer
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) {
			continue // EPIPE: what was to be read has been overwritten
		}
		if err != nil || n == 0 {
			break
		}
		if process, ok := killedBy(string(record[:n]), machine.UnitName(name)); ok {
			killed = process
		}
	}
	return killed
}

// killedBy returns the process of a unit that was killed according to a record of the
// kernel's log, as in
//
//	6,812,4521,-;oom-kill:constraint=CONSTRAINT_MEMCG,…,task_memcg=/nomad.slice/web.service/payload,task=dd,pid=4,uid=0
//
// (Documentation/ABI/testing/dev-kmsg, dump_oom_summary of mm/oom_kill.c, since 5.0). A
// container names its groups and processes as it likes, with commas too: it can only
// make a name wrong.
func killedBy(record, unit string) (process string, ok bool) {
	head, text, _ := strings.Cut(record, ";")
	priority, _, _ := strings.Cut(head, ",")
	text, _, _ = strings.Cut(text, "\n")
	if len(priority) != 1 || !strings.HasPrefix(text, "oom-kill:") { // two digits: not of the kernel
		return "", false
	}
	_, text, _ = strings.Cut(text, ",task_memcg=")
	group, text, _ := strings.Cut(text, ",task=")
	if !strings.Contains(group+"/", "/"+unit+"/") {
		return "", false
	}
	end := strings.LastIndex(text, ",pid=")
	if end < 0 {
		return "", false
	}
	return text[:end], true
}
