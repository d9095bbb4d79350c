package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/nspawn"
)

// recoverTimeout limits the wait for the bus to report a machine. Nomad recovers one task
// after the other.
const recoverTimeout = 5 * time.Second

// RecoverTask implements drivers.DriverPlugin. It fails only if the machine is truly gone.
// If the machine has ended in the meantime, WaitTask delivers the result.
//
// After an error Nomad ends the task. So an absent bus is not an error, because the
// follower waits for it. Nor is the version of the task's state: see TaskState.
func (d *Driver) RecoverTask(handle *drivers.TaskHandle) error {
	if handle == nil || handle.Config == nil {
		return errors.New("recover task: the handle has no task")
	}
	if _, ok := d.tasks.get(handle.Config.ID); ok {
		return nil
	}
	var state TaskState
	if err := handle.GetDriverState(&state); err != nil {
		return fmt.Errorf("recover task %s: decode its state: %w", handle.Config.ID, err)
	}
	h := newHandle(handle.Config, state)
	ctx, cancel := context.WithTimeout(d.ctx, recoverTimeout)
	defer cancel()
	status, err := d.machines.Status(ctx, h.machine)
	if errors.Is(err, nspawn.ErrLost) || d.isAnothers(ctx, h) {
		return d.recoverRemoved(handle.Config, state)
	}
	if err != nil {
		d.logger.Warn("recover task: assuming that it runs until the bus is back", "task_id", handle.Config.ID, "error", err)
	}
	if status.Exit == nil {
		if err := d.share.Update(ctx, h.config); err != nil {
			d.logger.Warn("recover task", "task_id", handle.Config.ID, "error", err)
		}
		d.reconnect(ctx, h)
	}
	d.watch(h, d.machines.Follow(h.machine, state.Mode, state.begin()))
	return nil
}

// isAnothers reports whether the machine belongs to a later start of the task: an agent
// that dies during a start knows only the earlier one.
func (d *Driver) isAnothers(ctx context.Context, h *taskHandle) bool {
	record, err := d.machines.Record(ctx, h.machine)
	id := record.Fields[job.TaskIDField]
	return err == nil && id != "" && id != h.config.ID
}

// recoverRemoved recovers a task whose machine is gone. An agent that dies after
// DestroyTask may not have recorded that the task has ended. The exit record provides the
// result again, so that the task does not run a second time.
func (d *Driver) recoverRemoved(cfg *drivers.TaskConfig, state TaskState) error {
	ctx, cancel := context.WithTimeout(d.ctx, callTimeout)
	defer cancel()
	boot, err := bootID()
	if err != nil {
		return err
	}
	if boot != state.BootID {
		return fmt.Errorf("recover task %s: the host was rebooted: %w", cfg.ID, nspawn.ErrLost)
	}
	record, err := readExitRecord(ctx, cfg.ID)
	if err != nil {
		return fmt.Errorf("recover task %s: %w: %w", cfg.ID, nspawn.ErrLost, err)
	}
	h := newHandle(cfg, state)
	h.begin(record.Started)
	h.end(record.Exit, nil, record.Ended)
	d.tasks.add(h)
	return nil
}

// bootID returns the ID of the host's current boot (random(4)).
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the host's boot ID: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
