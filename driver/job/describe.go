package job

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/nomad/plugins/drivers"
)

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// machineID returns the container's machine ID, which is the allocation's ID, so
// that `journalctl --merge` and `machinectl` show the allocation.
func machineID(allocID string) string {
	if !uuidPattern.MatchString(allocID) {
		return ""
	}
	return allocID
}

// Description returns the text that names the task in the unit and in the journal.
func Description(cfg *drivers.TaskConfig) string {
	text := fmt.Sprintf("Nomad task %s of group %s, job %s (namespace %s, allocation %s)",
		cfg.Name, cfg.TaskGroupName, cfg.JobName, cfg.Namespace, cfg.AllocID)
	// systemd writes the text unchanged into the unit's file, and reads that file after a
	// daemon-reload. A line feed in a job's name would begin settings that root executes.
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// Names of the journal fields that the driver reads.
const (
	AllocDirField = "NOMAD_ALLOC_HOST_DIR" // the allocation's directory on the host
	NodeIDField   = "NOMAD_NODE_ID"
	TaskIDField   = "NOMAD_TASK_ID"
)

// JournalFields returns the fields that each journal entry of the task has.
func JournalFields(cfg *drivers.TaskConfig) map[string]string {
	return map[string]string{
		AllocDirField:      cfg.AllocDir,
		"NOMAD_ALLOC_ID":   cfg.AllocID,
		"NOMAD_GROUP_NAME": cfg.TaskGroupName,
		"NOMAD_JOB_ID":     cfg.JobID,
		"NOMAD_JOB_NAME":   cfg.JobName,
		"NOMAD_NAMESPACE":  cfg.Namespace,
		NodeIDField:        cfg.NodeID,
		TaskIDField:        cfg.ID,
		"NOMAD_TASK_NAME":  cfg.Name,
	}
}
