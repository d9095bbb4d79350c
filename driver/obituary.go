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

	"nomad-driver-nspawn/nspawn"
)

// obituary says how a task ended whose machine is removed. The host's journal
// keeps it, where an operator may read it, too.
type obituary struct {
	Exit           nspawn.Exit
	Started, Ended time.Time
}

// Of an obituary's entry in the journal, beside those of each of the task's.
const (
	obituaryID    = "b2a5c6f30b7f4d6d8a4f3c0e6f6b9e41" // MESSAGE_ID
	obituaryField = "NOMAD_TASK_END"                   // the obituary, JSON
)

func writeObituary(h *taskHandle) error {
	if h.result.Err != nil && !h.result.OOMKilled {
		return nil // how it ended is not known
	}
	text, err := json.Marshal(obituary{Exit: h.exit, Started: *h.started.Load(), Ended: h.ended})
	if err != nil {
		return err
	}
	fields := journalFields(h.config)
	maps.Copy(fields, map[string]string{"MESSAGE_ID": obituaryID, obituaryField: string(text)})
	sent := make(chan error, 1)
	go func() {
		sent <- journal.Send(fmt.Sprintf("%s ended with %s", description(h.config), describe(h.result)), journal.PriInfo, fields)
	}()
	select {
	case err := <-sent:
		return err
	case <-time.After(journalTimeout):
		return errors.New("the journal does not take it")
	}
}

// journalTimeout keeps a journald that has stopped from keeping tasks.
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

// readObituary finds the obituary of a start of a task, which only root may have
// written, in this boot.
func readObituary(ctx context.Context, id string) (o obituary, err error) {
	// What is in the journal's queue is in its files after this.
	if err := exec.CommandContext(ctx, "journalctl", "--sync").Run(); err != nil {
		return o, fmt.Errorf("synchronize the journal: %w", err)
	}
	output, err := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--boot", "--output=json", "--lines=1",
		"_UID=0", "MESSAGE_ID="+obituaryID, "NOMAD_TASK_ID="+id).Output()
	if err != nil {
		return o, fmt.Errorf("look for its end in the journal: %w", err)
	}
	if len(bytes.TrimSpace(output)) == 0 {
		return o, errors.New("the journal does not tell its end")
	}
	var entry struct {
		Obituary string `json:"NOMAD_TASK_END"`
	}
	if err := json.Unmarshal(output, &entry); err != nil {
		return o, fmt.Errorf("read the journal's entry of its end: %w", err)
	}
	if err := json.Unmarshal([]byte(entry.Obituary), &o); err != nil {
		return o, fmt.Errorf("read the journal's entry of its end: %w", err)
	}
	return o, nil
}
