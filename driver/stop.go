package driver

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
)

// StopTask implements drivers.DriverPlugin. It returns when the task counts as exited, so
// that DestroyTask may follow at once. An unknown task is not an error, because Nomad
// would try again for minutes.
//
// A signal that this host does not know is refused, and no other signal is sent instead.
// Nomad then asks again, five times within six minutes. After that it waits for an end
// that nobody causes: a stopped job would run forever. So only the first call is refused.
// The second one, which comes after five seconds, kills the task, as at the end of
// kill_timeout.
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
		return fmt.Errorf("stop task: the machine is stopped, but systemd does not report how it ended: %w", ctx.Err())
	}
}

// stopSignal returns the signal that the job names, otherwise the image's.
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
	return unix.SIGTERM, nil // as with docker, even if the image names a signal that does not exist
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
