package operator

import (
	"fmt"

	"github.com/dustin/go-humanize"

	"nomad-driver-nspawn/driver/schema"
)

const maxPids = 16384 // the limit of systemd-nspawn@.service

// OOMScore checks a task that asks the kernel to spare it when memory is short.
func (p Policy) OOMScore() error {
	return refusal{what: "oom_score_adj: a negative one has the kernel kill others before the task", option: "allow_privileged"}.unless(p.rules.AllowPrivileged)
}

// Disk returns how much a task may write to its root, in bytes; 0 means no limit. asked is
// the size that the task asks for, or 0.
func (p Policy) Disk(asked uint64) (uint64, error) {
	standard, most := optionalSize(p.rules.DiskDefault), optionalSize(p.rules.DiskMax)
	switch {
	case asked > 0 && most > 0 && asked > most:
		return 0, fmt.Errorf("disk.size: %s is more than the operator allows with disk_max = %q in the plugin's config", humanize.IBytes(asked), *p.rules.DiskMax)
	case asked > 0:
		return asked, nil
	case standard > 0 && most > 0:
		return min(standard, most), nil
	case standard > 0:
		return standard, nil
	}
	return most, nil
}

func optionalSize(text *string) uint64 {
	if text == nil {
		return 0
	}
	return schema.Bytes(*text)
}

// Pids returns how many processes and threads a task may have. asked is the number that
// the task asks for, or 0 for the operator's.
func (p Policy) Pids(asked int64) (uint64, error) {
	most := p.rules.PidsLimit
	switch {
	case most == nil:
		return uint64(asked), nil
	case asked > *most:
		return 0, fmt.Errorf("pids_limit: %d is more than the operator allows with pids_limit = %d in the plugin's config", asked, *most)
	case asked > 0:
		return uint64(asked), nil
	}
	return uint64(*most), nil
}
