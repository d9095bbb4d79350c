package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn/enter"
)

// maxScriptOutput is how much Nomad keeps of the output of a script check
// (client/allocrunner/taskrunner/script_check_hook.go, CheckBufSize).
const maxScriptOutput = 4096

// ExecTask implements drivers.DriverPlugin, for script checks and change_script. Nomad
// reads only Stdout, so Stdout includes stderr.
func (d *Driver) ExecTask(id string, argv []string, timeout time.Duration) (*drivers.ExecTaskResult, error) {
	ctx := d.ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	output := &head{limit: maxScriptOutput}
	code, err := d.exec(ctx, id, enter.Command{Argv: argv, Stdout: output, Stderr: output})
	if ctx.Err() != nil {
		return nil, fmt.Errorf("exec %q: not done after %s: %w", argv, timeout, ctx.Err())
	}
	if err != nil {
		return nil, err
	}
	return &drivers.ExecTaskResult{
		Stdout:     output.Bytes(),
		ExitResult: &drivers.ExitResult{ExitCode: code},
	}, nil
}

// ExecTaskStreaming implements drivers.ExecTaskStreamingDriver, for
// `nomad alloc exec`.
func (d *Driver) ExecTaskStreaming(ctx context.Context, id string, opts *drivers.ExecOptions) (*drivers.ExitResult, error) {
	command := enter.Command{
		Argv:   opts.Command,
		TTY:    opts.Tty,
		Stdin:  opts.Stdin,
		Stdout: opts.Stdout,
		Stderr: opts.Stderr,
	}
	if opts.Tty {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		command.Resize = sizes(ctx, opts.ResizeCh)
	}
	code, err := d.exec(ctx, id, command)
	if err != nil {
		return nil, err
	}
	return &drivers.ExitResult{ExitCode: code}, nil
}

// exec runs a command beside the task's payload, as its user, with its environment and in
// its directory. The command ends with the task.
func (d *Driver) exec(ctx context.Context, id string, command enter.Command) (int, error) {
	h, ok := d.tasks.get(id)
	if !ok {
		return 0, drivers.ErrTaskNotFound
	}
	if len(command.Argv) == 0 {
		return 0, errors.New("exec: no command was given")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	defer context.AfterFunc(h.stopping, cancel)()
	for _, name := range slices.Sorted(maps.Keys(h.state.Environment)) {
		command.Env = append(command.Env, name+"="+h.state.Environment[name])
	}
	command.User, command.Dir = h.state.User, h.state.WorkingDirectory
	code, err := d.machines.Exec(ctx, h.machine, command)
	if err != nil {
		return 0, fmt.Errorf("exec %q: %w", command.Argv[0], err)
	}
	return code, nil
}

// sizes forwards the terminal's sizes until ctx ends, because Nomad does not close its
// channel.
func sizes(ctx context.Context, from <-chan drivers.TerminalSize) <-chan enter.Size {
	to := make(chan enter.Size)
	go func() {
		defer close(to)
		for {
			select {
			case size := <-from:
				select {
				case to <- enter.Size{Rows: uint16(size.Height), Cols: uint16(size.Width)}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

// head keeps the first bytes written to it and silently drops the rest. Both streams of a
// command are copied to it at the same time.
type head struct {
	mu sync.Mutex
	bytes.Buffer
	limit int
}

var _ io.Writer = (*head)(nil)

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Buffer.Write(p[:min(len(p), h.limit-h.Len())])
	return len(p), nil
}
