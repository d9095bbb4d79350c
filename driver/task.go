package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/guard"
	"nomad-driver-nspawn/nspawn/machine"
)

// callTimeout limits calls that have no timeout of their own, because Nomad sets no
// deadline for any call.
const callTimeout = 2 * time.Minute

// StartTask implements drivers.DriverPlugin.
func (d *Driver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if _, ok := d.tasks.get(cfg.ID); ok {
		return nil, nil, fmt.Errorf("start task %s: it is already running", cfg.ID)
	}
	name := machine.Name(cfg.AllocID, cfg.Name)
	d.reaper.Cancel(name)
	output := &output{driver: d, task: cfg}
	handle, network, err := d.startTask(cfg, output)
	if err != nil {
		output.release()
		d.reaper.Schedule(name) // removes what could not be undone, because Nomad does not ask for it
	}
	return handle, network, printableError(err)
}

func (d *Driver) startTask(cfg *drivers.TaskConfig, output *output) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	ours, err := d.startedBefore(cfg)
	if err != nil {
		return nil, nil, recoverable(err)
	}
	task, found, spec, err := d.prepare(cfg, ours)
	if err != nil {
		if ours {
			err = errors.Join(err, d.DestroyTask(cfg.ID, true)) // Nomad does not call it
		}
		return nil, nil, err
	}
	if found.Release != nil {
		defer found.Release()
	}
	ctx, cancel := context.WithTimeout(d.ctx, callTimeout)
	defer cancel()
	if err := d.checkNetworkd(ctx, cfg, spec); err != nil && !ours {
		return nil, nil, recoverable(err)
	}
	if err := errors.Join(d.forbidLinks(cfg), d.share.Update(ctx, cfg)); err != nil {
		return nil, nil, recoverable(err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, nil, err
	}
	handle := drivers.NewTaskHandle(stateVersion)
	handle.Config = cfg
	handle.State = drivers.TaskStateRunning
	state := TaskState{
		BootID: boot, Mode: spec.Mode, Notifies: spec.Notifies(), StopSignal: found.Config.StopSignal,
		Command: spec.Command, Environment: spec.Environment, User: spec.User, WorkingDirectory: spec.WorkingDirectory,
		Sysctls: spec.Sysctls,
	}
	if err := handle.SetDriverState(&state); err != nil {
		return nil, nil, fmt.Errorf("record task %s: %w", cfg.ID, err)
	}
	network := &networkStep{driver: d, task: cfg, spec: spec}
	follower, err := d.startMachine(ctx, spec, ours, output, network)
	if err != nil {
		return nil, nil, startError(err)
	}
	// The payload has begun, so nothing may fail from here on: Nomad would run it again.
	d.warnOfVariables(cfg, spec)
	network.look(ctx)
	state.Network = newNetworkState(spec.Network, network.connection)
	if err := handle.SetDriverState(&state); err != nil {
		d.logger.Error("record the network of a task", "task_id", cfg.ID, "error", err)
	}
	h := newHandle(cfg, state)
	if ours {
		d.reconnect(ctx, h)
	}
	d.watch(h, follower)
	return handle, network.result(task), nil
}

// forbidLinks keeps Nomad from following symbolic links in the allocation of a dispatched
// job. It leaves other allocations alone, because Nomad could then not move a sticky disk
// to the next allocation.
//
// Each start also removes what is left of earlier allocations. Nomad empties them at any
// time, without an event. Between two rounds of the reaper, dispatched jobs would leave
// many behind, and an operator may have turned the reaper off. Without dispatched jobs,
// it costs one stat(2).
func (d *Driver) forbidLinks(cfg *drivers.TaskConfig) error {
	if err := d.machines.RemoveEmptied(); err != nil {
		d.logger.Warn("remove directories of allocations that Nomad has emptied", "error", err)
	}
	if !job.Dispatched(cfg) {
		return nil
	}
	return d.machines.ForbidLinks(cfg.AllocDir)
}

// startMachine adopts the machine that an earlier plugin made for the same start. It
// starts a machine if there is none, or if the earlier one never came up.
func (d *Driver) startMachine(ctx context.Context, spec machine.Spec, ours bool, output *output, network *networkStep) (*nspawn.Follower, error) {
	if ours {
		begin := nspawn.Begin{Instructions: spec.Instructions(), Steps: []nspawn.Step{network.connect}, Sysctls: spec.Sysctls}
		follower, err := d.machines.Adopt(ctx, spec.Machine, spec.Mode, begin)
		var failed *nspawn.StartError
		if !errors.As(err, &failed) {
			return follower, err
		}
	}
	return d.machines.Start(ctx, spec, func(text string) { d.emit(output.task, text) }, output.open, network.connect)
}

// startError returns the error of StartTask if nothing of the task has run. A command that
// the image does not have will not exist at the next attempt either.
func startError(err error) error {
	var failure *inside.Failure
	if errors.As(err, &failure) && !failure.Again {
		return fmt.Errorf("%w (exit status %d)", err, failure.Code)
	}
	return recoverable(err)
}

// warnOfVariables emits the names of variables that a guest's systemd does not accept.
func (d *Driver) warnOfVariables(cfg *drivers.TaskConfig, spec machine.Spec) {
	if spec.Mode != machine.Boot {
		return
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(spec.Environment)) {
		if !machine.ValidEnvironmentName(name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		d.emit(cfg, fmt.Sprintf("Systemd in the machine does not accept variables with these names, so its services do not get them: %s",
			strings.Join(names, ", ")))
	}
}

// startedBefore reports whether an earlier plugin has made a machine for the same start.
// If a plugin is killed during a start, Nomad repeats the call to the next plugin, and the
// task must not run twice.
func (d *Driver) startedBefore(cfg *drivers.TaskConfig) (bool, error) {
	name := machine.Name(cfg.AllocID, cfg.Name)
	if !d.machines.Exists(name) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(d.ctx, callTimeout)
	defer cancel()
	record, err := d.machines.Record(ctx, name)
	if errors.Is(err, nspawn.ErrLost) {
		return false, nil
	}
	return err == nil && record.Fields[job.TaskIDField] == cfg.ID, err
}

// recoverable marks an error that need not be the job's fault: Nomad tries again,
// according to the restart policy. The result must not be wrapped, because the server of
// the plugin protocol checks its exact type (plugins/drivers/server.go, StartTask).
func recoverable(err error) error { return structs.NewRecoverableError(err, true) }

// watch follows the task until its machine ends. If the plugin ends first, the machine
// keeps running.
func (d *Driver) watch(h *taskHandle, follower *nspawn.Follower) {
	d.tasks.add(h)
	d.keepConnected(h)
	go func() {
		for event := range follower.Events(d.ctx) {
			switch event.Kind {
			case nspawn.Started:
				h.begin(event.Time)
			case nspawn.Ready:
				if h.state.Notifies {
					d.emit(h.config, "Machine is ready")
				}
			case nspawn.Rebooted:
				d.emit(h.config, "Machine rebooted from inside")
				d.keepConnected(h)
			case nspawn.Held:
				d.emit(h.config, fmt.Sprintf("Machine cannot continue after a reboot: %v", event.Err))
			case nspawn.Ended:
				h.end(event.Exit, event.Err, event.Time)
			}
		}
	}()
}

// emit sends an event to the task's user. Nomad keeps ten events of a task.
func (d *Driver) emit(cfg *drivers.TaskConfig, message string) {
	event := &drivers.TaskEvent{TaskID: cfg.ID, TaskName: cfg.Name, AllocID: cfg.AllocID, Timestamp: time.Now(), Message: printable(message)}
	if err := d.EmitEvent(event); err != nil && d.ctx.Err() == nil {
		d.logger.Warn("emit task event", "task_id", cfg.ID, "error", err)
	}
}

func exitResult(exit nspawn.Exit, err error) *drivers.ExitResult {
	switch {
	case err != nil:
	case exit.Reboots:
		err = errors.New("the machine has rebooted more than 20 times within 10 minutes")
	case exit.Killed != "":
		err = fmt.Errorf("OOM killed: the task ran out of memory, and the kernel killed its process %s", exit.Killed)
	case exit.OOMKilled: // Nomad shows the error, not the flag
		err = errors.New("OOM killed: the task ran out of memory")
	}
	return &drivers.ExitResult{ExitCode: exit.Code, Signal: exit.Signal, OOMKilled: exit.OOMKilled, Err: printableError(err)}
}

// WaitTask implements drivers.DriverPlugin.
func (d *Driver) WaitTask(ctx context.Context, id string) (<-chan *drivers.ExitResult, error) {
	h, ok := d.tasks.get(id)
	if !ok {
		return nil, drivers.ErrTaskNotFound
	}
	d.keepDirectories(h.config)
	results := make(chan *drivers.ExitResult, 1)
	go func() {
		defer close(results)
		select {
		case <-h.done:
			results <- h.result.Copy()
		case <-ctx.Done():
		case <-d.ctx.Done():
		}
	}()
	return results, nil
}

// keepDirectories lets the task write to the directory that tasks share, as when it was
// started. An agent that starts gives the directory to the user nobody, between
// RecoverTask and WaitTask.
func (d *Driver) keepDirectories(cfg *drivers.TaskConfig) {
	for _, dir := range job.Directories(cfg) {
		err := guard.ProtectBind(dir, cfg.AllocDir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			d.logger.Warn("keep the directories of a task", "task_id", cfg.ID, "error", err)
		}
	}
}

// DestroyTask implements drivers.DriverPlugin. Nomad also calls it for a task that it
// could not recover. This plugin has never seen such a task, so it finds the machine by
// its name.
func (d *Driver) DestroyTask(id string, force bool) error {
	h, known := d.tasks.get(id)
	if known && !force && !h.hasEnded() {
		return errors.New("destroy a running task: stop it first, or set force")
	}
	machine, ok := machineOf(id)
	if known {
		machine = h.machine
	} else if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(d.ctx, callTimeout)
	defer cancel()
	if known && h.hasEnded() {
		if err := writeExitRecord(h); err != nil {
			d.logger.Warn("record the end of a task", "task_id", id, "error", err)
		}
	}
	// Nomad does not ask again. What cannot be removed now is left to the reaper, which
	// ignores the machines of known tasks.
	d.tasks.remove(id)
	err := d.machines.Remove(ctx, machine)
	if err != nil {
		d.reaper.Schedule(machine)
	}
	return err
}

// machineOf returns the machine of a task ID, ALLOCATION/TASK/START
// (client/allocrunner/taskrunner/task_runner.go, buildTaskConfig).
func machineOf(id string) (string, bool) {
	parts := strings.Split(id, "/")
	if len(parts) != 3 {
		return "", false
	}
	return machine.Name(parts[0], parts[1]), true
}

// InspectTask implements drivers.DriverPlugin.
func (d *Driver) InspectTask(id string) (*drivers.TaskStatus, error) {
	h, ok := d.tasks.get(id)
	if !ok {
		return nil, drivers.ErrTaskNotFound
	}
	return h.status(), nil
}
