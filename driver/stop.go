package driver

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
)

// StopTask implements drivers.DriverPlugin. It returns when the task counts as
// exited, so that DestroyTask may follow at once. An unknown task is not an error:
// Nomad would try again for minutes.
//
// A signal that this host does not know is refused, and the task gets no other
// signal in its place. Nomad then asks again, five times within six minutes, and
// after that waits for an end that nobody brings about: a stopped job would run on
// for ever. So only the first call is refused. The second, which comes after five
// seconds, kills the task as the end of kill_timeout does.
func (d *Driver) StopTask(id string, timeout time.Duration, name string) error {
	h, ok := d.tasks.get(id)
	if !ok {
		return nil
	}
	sig, err := h.stopSignal(name)
	switch {
	case err == nil:
	case h.refused.CompareAndSwap(false, true):
		err = fmt.Errorf("stop task: kill_signal: %w", err)
		d.emit(h.config, err.Error()+"; when Nomad asks again, the task is killed")
		return err
	default:
		sig, timeout = unix.SIGKILL, 0
	}
	if h.state.Mode == machine.Boot {
		h.stop()
	}
	ctx, cancel := context.WithTimeout(d.ctx, timeout+callTimeout)
	defer cancel()
	if err := d.machines.Stop(ctx, h.machine, h.state.Mode, sig, timeout, func(text string) { d.emit(h.config, text) }); err != nil {
		return err
	}
	select {
	case <-h.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop task: the machine is stopped, but systemd does not tell how it ended: %w", ctx.Err())
	}
}

// stopSignal returns the signal that the job names, or else the one that the task
// is made for.
func (h *taskHandle) stopSignal(name string) (unix.Signal, error) {
	if name != "" {
		return machine.ParseSignal(name)
	}
	if h.state.Mode == machine.Boot {
		return machine.Halt, nil
	}
	if sig, err := machine.ParseSignal(h.state.StopSignal); err == nil {
		return sig, nil
	}
	return unix.SIGTERM, nil // as with docker, also if the image names one that does not exist
}

// SignalTask implements drivers.DriverPlugin.
func (d *Driver) SignalTask(id, name string) error {
	h, ok := d.tasks.get(id)
	if !ok {
		return drivers.ErrTaskNotFound
	}
	sig, err := machine.ParseSignal(name)
	if err != nil {
		return fmt.Errorf("signal task: %w", err)
	}
	ctx, cancel := context.WithTimeout(d.ctx, callTimeout)
	defer cancel()
	return d.machines.Signal(ctx, h.machine, h.state.Mode, sig)
}
