package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
)

// measureExec runs `true` in a task with the driver's defaults.
func measureExec(ctx context.Context, p *plugin, opts options, r *report) error {
	t, err := p.startIdle()
	if err != nil {
		return err
	}
	processes, err := t.processes(ctx)
	if err != nil {
		return err
	}
	bare := &way{name: "exec_nsenter", run: timed(func(ctx context.Context) error {
		return nsenter(ctx, processes.stub)
	})}
	task := &way{name: "exec_task", run: timed(t.exec)}
	streaming := &way{name: "exec_streaming", run: timed(t.execStreaming)}
	if err := takeTurns(ctx, opts.runs, bare, task, streaming); err != nil {
		return err
	}
	return errors.Join(
		r.add("exec_nsenter", "ms", bare.calls...),
		r.add("exec_task", "ms", task.calls...),
		r.add("exec_streaming", "ms", streaming.calls...),
		r.add("exec_task_ratio", "x", ratios(task.calls, bare.calls)...),
		r.add("exec_streaming_ratio", "x", ratios(streaming.calls, bare.calls)...),
		t.destroy(),
	)
}

func timed(run func(context.Context) error) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		begin := time.Now()
		err := run(ctx)
		return sample{call: time.Since(begin)}, err
	}
}

// nsenter enters all namespaces of the process, without the confinement that the driver
// copies.
func nsenter(ctx context.Context, pid int) error {
	return exec.CommandContext(ctx, "nsenter", "--all", "--target", strconv.Itoa(pid), "true").Run()
}

func (t *task) exec(context.Context) error {
	result, err := t.plugin.driver.ExecTask(t.config.ID, []string{"true"}, patience)
	if err != nil {
		return err
	}
	return exited(result.ExitResult.ExitCode)
}

func (t *task) execStreaming(ctx context.Context) error {
	raw, ok := t.plugin.driver.(drivers.ExecTaskStreamingRawDriver)
	if !ok {
		return fmt.Errorf("%T has no streaming exec", t.plugin.driver)
	}
	s := &noInput{code: -1}
	if err := raw.ExecTaskStreamingRaw(ctx, t.config.ID, []string{"true"}, false, s); err != nil {
		return err
	}
	return exited(s.code)
}

func exited(code int) error {
	if code != 0 {
		return fmt.Errorf("exit code %d", code)
	}
	return nil
}

// noInput is the caller's side of an exec without input, which discards the output.
type noInput struct {
	closed bool
	code   int
}

// Send implements drivers.ExecTaskStream.
func (s *noInput) Send(message *drivers.ExecTaskStreamingResponseMsg) error {
	if message.Exited && message.Result != nil {
		s.code = int(message.Result.ExitCode)
	}
	return nil
}

// Recv implements drivers.ExecTaskStream.
func (s *noInput) Recv() (*drivers.ExecTaskStreamingRequestMsg, error) {
	if s.closed {
		return nil, io.EOF
	}
	s.closed = true
	return &drivers.ExecTaskStreamingRequestMsg{Stdin: &proto.ExecTaskStreamingIOOperation{Close: true}}, nil
}
