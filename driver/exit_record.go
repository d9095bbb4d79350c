package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/nspawn"
)

// exitRecord says how a task ended. It is written to the host's journal when the machine
// is removed. Operators can read it there, too.
type exitRecord struct {
	Exit           nspawn.Exit
	Started, Ended time.Time
}

// The fields of an exit record's journal entry, in addition to those of every entry of the
// task.
const (
	exitRecordID    = "b2a5c6f30b7f4d6d8a4f3c0e6f6b9e41" // MESSAGE_ID
	exitRecordField = "NOMAD_TASK_END"                   // the record, JSON
)

func writeExitRecord(h *taskHandle) error {
	if h.result.Err != nil && !h.result.OOMKilled {
		return nil // how it ended is not known
	}
	text, err := json.Marshal(exitRecord{Exit: h.exit, Started: *h.started.Load(), Ended: h.ended})
	if err != nil {
		return err
	}
	fields := job.JournalFields(h.config)
	maps.Copy(fields, map[string]string{"MESSAGE_ID": exitRecordID, exitRecordField: string(text)})
	sent := make(chan error, 1)
	go func() {
		sent <- journal.Send(fmt.Sprintf("%s ended with %s", job.Description(h.config), describe(h.result)), journal.PriInfo, fields)
	}()
	select {
	case err := <-sent:
		return err
	case <-time.After(journalTimeout):
		return errors.New("the journal does not accept it")
	}
}

// journalTimeout limits the wait for the journal, so that a journald that hangs does not
// hold up tasks.
const journalTimeout = 2 * time.Second

func describe(result *drivers.ExitResult) string {
	switch {
	case result.OOMKilled:
		return "an OOM kill"
	case result.Signal != 0:
		return fmt.Sprintf("signal %d", result.Signal)
	}
	return fmt.Sprintf("exit code %d", result.ExitCode)
}

// readExitRecord finds the record of a start of a task in the journal of this boot. Only
// an entry that root has written counts.
func readExitRecord(ctx context.Context, id string) (record exitRecord, err error) {
	// After this, everything in the journal's queue is in its files.
	if err := exec.CommandContext(ctx, "journalctl", "--sync").Run(); err != nil {
		return record, fmt.Errorf("synchronize the journal: %w", err)
	}
	output, err := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--boot", "--output=json", "--lines=1",
		"_UID=0", "MESSAGE_ID="+exitRecordID, job.TaskIDField+"="+id).Output()
	if err != nil {
		return record, fmt.Errorf("look for its end in the journal: %w", err)
	}
	if len(bytes.TrimSpace(output)) == 0 {
		return record, errors.New("the journal has no record of its end")
	}
	var entry struct {
		Record string `json:"NOMAD_TASK_END"`
	}
	if err := json.Unmarshal(output, &entry); err != nil {
		return record, fmt.Errorf("read the journal's entry of its end: %w", err)
	}
	if err := json.Unmarshal([]byte(entry.Record), &record); err != nil {
		return record, fmt.Errorf("read the journal's entry of its end: %w", err)
	}
	return record, nil
}
