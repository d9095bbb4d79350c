package nspawn

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
)

// journalEntry has the fields of systemd.journal-fields(7) that identify the sender of a
// message.
type journalEntry struct {
	Message string `json:"MESSAGE"`
	PID     int    `json:"_PID,string"`
	Unit    string `json:"_SYSTEMD_UNIT"`
}

// lastMessage returns the last message that nspawn, the main process of the unit, logged
// in the journal, or "" if there is none.
func lastMessage(ctx context.Context, name string, unit systemd.UnitState) string {
	// After this, what nspawn has sent is in the journal's files.
	if exec.CommandContext(ctx, "journalctl", "--sync").Run() != nil {
		return ""
	}
	output, err := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--output=json", "--lines=100",
		"--priority=err", "--identifier=systemd-nspawn", fmt.Sprintf("--since=@%d", unit.ExecMainStart.Unix())).Output()
	if err != nil {
		return ""
	}
	return strings.Join(messagesOf(output, machine.UnitName(name), int(unit.ExecMainPID)), "; ")
}

// messagesOf returns the messages of a unit and its main process. If a process ended
// before journald looked at it, its entry has no unit. Such an entry is included if the
// process is the main one or a later one, as nspawn's children are, and no process of
// another unit is between them.
func messagesOf(entries []byte, unit string, main int) (messages []string) {
	list := parseEntries(entries)
	between := func(pid int) bool {
		return slices.ContainsFunc(list, func(other journalEntry) bool {
			return other.Unit != "" && other.Unit != unit && main < other.PID && other.PID <= pid
		})
	}
	for _, entry := range list {
		if entry.Unit == unit || entry.Unit == "" && entry.PID >= main && !between(entry.PID) {
			messages = append(messages, entry.Message)
		}
	}
	return messages
}

func parseEntries(entries []byte) (list []journalEntry) {
	for line := range bytes.Lines(entries) {
		var entry journalEntry
		if json.Unmarshal(line, &entry) == nil { // a message that is not UTF-8 is a list of numbers
			list = append(list, entry)
		}
	}
	return list
}
