package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Alloc is an allocation of a job that was run.
type Alloc struct {
	ID, Name, Job string

	agent *Agent
	node  string
}

// Run registers the job that an HCL text describes and returns its allocations, sorted by
// name, when they are placed.
func (a *Agent) Run(ctx context.Context, hcl string) ([]*Alloc, error) {
	job, response, err := a.register(ctx, hcl)
	if err != nil {
		return nil, err
	}
	return a.placed(ctx, job, response.EvalID)
}

// Dispatch is like Run, for a job that must be dispatched with a payload.
func (a *Agent) Dispatch(ctx context.Context, hcl, payload string) ([]*Alloc, error) {
	job, _, err := a.register(ctx, hcl)
	if err != nil {
		return nil, err
	}
	write := (&api.WriteOptions{}).WithContext(ctx)
	response, _, err := a.API.Jobs().DispatchOpts(&api.DispatchOptions{JobID: job, Payload: []byte(payload)}, write)
	if err != nil {
		return nil, fmt.Errorf("dispatch job %s: %w", job, err)
	}
	return a.placed(ctx, response.DispatchedJobID, response.EvalID)
}

// register registers a job and returns its ID.
func (a *Agent) register(ctx context.Context, hcl string) (string, *api.JobRegisterResponse, error) {
	job, err := a.API.Jobs().ParseHCL(hcl, true)
	if err != nil {
		return "", nil, fmt.Errorf("parse job: %w", err)
	}
	response, _, err := a.API.Jobs().Register(job, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return "", nil, fmt.Errorf("register job %s: %w", *job.ID, err)
	}
	return *job.ID, response, nil
}

// placed returns the allocations of an evaluation when they are placed.
func (a *Agent) placed(ctx context.Context, job, evaluation string) ([]*Alloc, error) {
	query := func(q *api.QueryOptions) (*api.Evaluation, *api.QueryMeta, error) {
		return a.API.Evaluations().Info(evaluation, q)
	}
	eval, err := watch(ctx, query, func(eval *api.Evaluation) bool { return eval.Status != api.EvalStatusPending })
	if err != nil {
		return nil, fmt.Errorf("wait for job %s to be placed: %w", job, err)
	}
	for group, metric := range eval.FailedTGAllocs {
		return nil, fmt.Errorf("place group %s of job %s: no node is fit: constraints %v, resources %v",
			group, job, metric.ConstraintFiltered, metric.DimensionExhausted)
	}
	list, _, err := a.API.Evaluations().Allocations(eval.ID, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("list allocations of job %s: %w", job, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("place job %s: its evaluation is %s: %s", job, eval.Status, eval.StatusDescription)
	}
	slices.SortFunc(list, func(a, b *api.AllocationListStub) int { return strings.Compare(a.Name, b.Name) })
	var allocs []*Alloc
	for _, stub := range list {
		allocs = append(allocs, &Alloc{ID: stub.ID, Name: stub.Name, Job: job, agent: a, node: stub.NodeID})
	}
	return allocs, nil
}

// Stop stops the allocation's job and returns the allocation when it has ended.
func (al *Alloc) Stop(ctx context.Context) (*api.Allocation, error) {
	const purge = false
	if _, _, err := al.agent.API.Jobs().Deregister(al.Job, purge, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
		return nil, fmt.Errorf("stop job %s: %w", al.Job, err)
	}
	return al.Ended(ctx)
}

// Remove stops the allocation's job and returns when nothing of the allocation is left on
// the node.
func (al *Alloc) Remove(ctx context.Context) error {
	if _, err := al.Stop(ctx); err != nil {
		return err
	}
	// Nomad reports the status before it tears down the network, so this waits for the
	// latter. Nodes().GcAlloc cannot be used: it returns an error for the empty answer.
	answer, err := al.agent.API.Raw().Response("/v1/client/allocation/"+al.ID+"/gc", (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err == nil:
		return answer.Close()
	case strings.Contains(err.Error(), "No such allocation"): // Nomad was faster
		return nil
	}
	return fmt.Errorf("remove allocation %s from its node: %w", al.Name, err)
}

// Running waits until all tasks run.
func (al *Alloc) Running(ctx context.Context) error {
	_, err := al.Await(ctx, "running", func(now *api.Allocation) bool {
		return now.ClientStatus == api.AllocClientStatusRunning
	})
	return err
}

// Healthy waits until the allocation counts as healthy in its deployment.
func (al *Alloc) Healthy(ctx context.Context) error {
	_, err := al.Await(ctx, "healthy", func(now *api.Allocation) bool {
		status := now.DeploymentStatus
		return status != nil && status.Healthy != nil && *status.Healthy
	})
	return err
}

// Ended waits until the allocation has ended, whether it succeeded or failed.
func (al *Alloc) Ended(ctx context.Context) (*api.Allocation, error) {
	return al.Await(ctx, "ended", terminal)
}

// Next waits for the allocation that replaces this one.
func (al *Alloc) Next(ctx context.Context) (*Alloc, error) {
	query := func(q *api.QueryOptions) (*api.Allocation, *api.QueryMeta, error) {
		return al.agent.API.Allocations().Info(al.ID, q)
	}
	now, err := watch(ctx, query, func(now *api.Allocation) bool { return now.NextAllocation != "" })
	if err != nil {
		return nil, fmt.Errorf("wait for an allocation in place of %s: %w", al.Name, err)
	}
	next := *al
	next.ID = now.NextAllocation
	return &next, nil
}

func terminal(now *api.Allocation) bool {
	switch now.ClientStatus {
	case api.AllocClientStatusComplete, api.AllocClientStatusFailed, api.AllocClientStatusLost:
		return true
	}
	return false
}

// Await waits until the allocation fulfills a condition. It fails at once if the
// allocation ends without fulfilling it.
func (al *Alloc) Await(ctx context.Context, what string, until func(*api.Allocation) bool) (*api.Allocation, error) {
	query := func(q *api.QueryOptions) (*api.Allocation, *api.QueryMeta, error) {
		return al.agent.API.Allocations().Info(al.ID, q)
	}
	now, err := watch(ctx, query, func(now *api.Allocation) bool { return until(now) || terminal(now) })
	if err == nil && !until(now) {
		err = fmt.Errorf("it is %s", now.ClientStatus)
	}
	if err != nil {
		return now, fmt.Errorf("wait for allocation %s to be %s: %w; its events:\n%s", al.Name, what, err, Events(now))
	}
	return now, nil
}

// Events returns the events of all tasks, one per line.
func Events(now *api.Allocation) string {
	var b strings.Builder
	if now != nil {
		for _, task := range slices.Sorted(maps.Keys(now.TaskStates)) {
			for _, event := range now.TaskStates[task].Events {
				fmt.Fprintf(&b, "  %s: %s: %s\n", task, event.Type, event.DisplayMessage)
			}
		}
	}
	return b.String()
}

func (al *Alloc) stub() *api.Allocation { return &api.Allocation{ID: al.ID, NodeID: al.node} }

// Streams of a task's log.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Log reads a task's log from its start until it contains a text. For a moment, an
// allocation is running according to the server, while its task is "not started yet"
// according to the client.
func (al *Alloc) Log(ctx context.Context, task, stream, until string) (string, error) {
	for {
		text, err := al.readLog(ctx, task, stream, until)
		if err == nil || !strings.Contains(err.Error(), "not started yet") {
			return text, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return text, err
		}
	}
}

func (al *Alloc) readLog(ctx context.Context, task, stream, until string) (string, error) {
	const follow = true
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	frames, errs := al.agent.API.AllocFS().Logs(al.stub(), follow, task, stream, api.OriginStart, 0, ctx.Done(), (&api.QueryOptions{}).WithContext(ctx))
	var text strings.Builder
	for !strings.Contains(text.String(), until) {
		select {
		case frame, ok := <-frames:
			if !ok {
				return text.String(), fmt.Errorf("read %s of task %s: it ends without %q: %q", stream, task, until, text.String())
			}
			text.Write(frame.Data)
		case err := <-errs:
			return text.String(), fmt.Errorf("read %s of task %s: %w", stream, task, err)
		case <-ctx.Done():
			return text.String(), fmt.Errorf("read %s of task %s: %w; no %q in %q", stream, task, ctx.Err(), until, text.String())
		}
	}
	return text.String(), nil
}

// tailSize is how much of a log Tails returns.
const tailSize = 4096

// Tails returns the ends of all logs that the allocation's tasks have written.
func (al *Alloc) Tails(ctx context.Context) (string, error) {
	now, _, err := al.agent.API.Allocations().Info(al.ID, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("read allocation %s: %w", al.Name, err)
	}
	var tails strings.Builder
	for _, task := range slices.Sorted(maps.Keys(now.TaskStates)) {
		for _, stream := range []string{Stdout, Stderr} {
			text, tailErr := al.tail(ctx, task, stream)
			if text != "" {
				fmt.Fprintf(&tails, "%s of task %s ends with:\n%s\n", stream, task, text)
			}
			err = errors.Join(err, tailErr)
		}
	}
	return tails.String(), err
}

func (al *Alloc) tail(ctx context.Context, task, stream string) (string, error) {
	const follow = false
	frames, errs := al.agent.API.AllocFS().Logs(al.stub(), follow, task, stream, api.OriginEnd, tailSize, ctx.Done(), (&api.QueryOptions{}).WithContext(ctx))
	var text strings.Builder
	for {
		select {
		case frame, ok := <-frames:
			if !ok {
				return text.String(), nil
			}
			text.Write(frame.Data)
		case err := <-errs:
			return text.String(), fmt.Errorf("read %s of task %s: %w", stream, task, err)
		case <-ctx.Done():
			return text.String(), fmt.Errorf("read %s of task %s: %w", stream, task, ctx.Err())
		}
	}
}

// Output is the output of a command in a task, and its exit code.
type Output struct {
	Code           int
	Stdout, Stderr string
}

// Exec runs a command in a task, as `nomad alloc exec` does without a terminal.
func (al *Alloc) Exec(ctx context.Context, task, stdin string, argv ...string) (Output, error) {
	var stdout, stderr bytes.Buffer
	const tty = false
	code, err := al.agent.API.Allocations().Exec(ctx, al.stub(), task, tty, argv, strings.NewReader(stdin), &stdout, &stderr, nil, nil)
	if err != nil {
		err = fmt.Errorf("exec %q in task %s: %w", argv, task, err)
	}
	return Output{code, stdout.String(), stderr.String()}, err
}

// ExecTTY runs a command in a task at a terminal. screen gets all output, and the terminal
// gets each size.
func (al *Alloc) ExecTTY(ctx context.Context, task string, stdin io.Reader, screen io.Writer, sizes <-chan api.TerminalSize, argv ...string) (int, error) {
	const tty = true
	code, err := al.agent.API.Allocations().Exec(ctx, al.stub(), task, tty, argv, stdin, screen, screen, sizes, nil)
	if err != nil {
		err = fmt.Errorf("exec %q in task %s: %w", argv, task, err)
	}
	return code, err
}

// Signal sends a signal to a task.
func (al *Alloc) Signal(ctx context.Context, task, signal string) error {
	return al.agent.API.Allocations().Signal(al.stub(), (&api.QueryOptions{}).WithContext(ctx), task, signal)
}

// Restart stops all tasks and starts them again in place.
func (al *Alloc) Restart(ctx context.Context) error {
	return al.agent.API.Allocations().RestartAllTasks(al.stub(), (&api.QueryOptions{}).WithContext(ctx))
}

// Stats returns the allocation's current usage.
func (al *Alloc) Stats(ctx context.Context) (*api.ResourceUsage, error) {
	usage, err := al.agent.API.Allocations().Stats(al.stub(), (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if usage.ResourceUsage == nil || usage.ResourceUsage.CpuStats == nil || usage.ResourceUsage.MemoryStats == nil {
		return nil, errors.New("read stats: the driver has not reported any yet")
	}
	return usage.ResourceUsage, nil
}
