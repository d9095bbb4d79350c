package upkeep

import (
	"context"
	"errors"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn"
)

// Tasks returns the machines that have a task, and the nodes of all tasks so far. All
// tasks of one client are on the same node.
type Tasks func() (machines, nodes map[string]bool)

// Reaper removes dangling machines, which belong to no task. Its methods may be called at
// any time, even if it does not run.
type Reaper struct {
	machines *nspawn.Manager
	tasks    Tasks
	logger   hclog.Logger
	began    time.Time     // start of the plugin, which may still recover older machines
	wake     chan struct{} // receives an element when a removal has failed
	// Machines whose removal has failed, and since when: Nomad does not ask again.
	unfinished sync.Map
}

// NewReaper returns a reaper that has nothing to do yet.
func NewReaper(machines *nspawn.Manager, tasks Tasks, logger hclog.Logger) *Reaper {
	return &Reaper{machines: machines, tasks: tasks, logger: logger, began: time.Now(), wake: make(chan struct{}, 1)}
}

// Schedule asks for another removal of a machine soon, because a removal may have failed.
func (r *Reaper) Schedule(machine string) {
	r.unfinished.Store(machine, time.Now())
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Cancel cancels Schedule, because the machine is to be started again.
func (r *Reaper) Cancel(machine string) { r.unfinished.Delete(machine) }

// prune forgets machines whose removal had failed before the records were read, if nothing
// is left of them.
func (r *Reaper) prune(unfinished map[any]any, records []nspawn.Record) {
	for _, record := range records {
		delete(unfinished, record.Machine)
	}
	for machine, since := range unfinished {
		r.unfinished.CompareAndDelete(machine, since)
	}
}

// retryPeriod is the first interval after which a failed removal is repeated.
const retryPeriod = time.Second

// Run removes dangling machines until ctx ends: once in each period, and soon after a
// removal has failed.
//
// It must look for them, because no signal reports that Nomad has forgotten an allocation.
func (r *Reaper) Run(ctx context.Context, config operator.DanglingMachines) {
	if !config.Enabled {
		return
	}
	period, _ := config.Times()
	// Files that a killed plugin has left belong to no machine and are removed at once.
	wait := min(retryPeriod, period)
	for {
		select {
		case <-time.After(wait):
			err := r.Once(ctx, config)
			if err != nil && ctx.Err() == nil {
				r.logger.Warn("remove dangling machines", "error", err)
				wait = min(2*wait, period)
			} else {
				wait = period
			}
		case <-r.wake:
			wait = min(retryPeriod, period)
		case <-ctx.Done():
			return
		}
	}
}

// Once removes the machines that are dangling now.
func (r *Reaper) Once(ctx context.Context, config operator.DanglingMachines) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	emptied := r.machines.RemoveEmptied()
	unfinished := maps.Collect(r.unfinished.Range)
	records, err := r.machines.Machines(ctx)
	if err != nil {
		return err
	}
	r.prune(unfinished, records)
	_, grace := config.Times()
	machines, nodes := r.tasks()
	errs := []error{emptied}
	for _, record := range records {
		if machines[record.Machine] || !r.dangling(record, nodes, time.Now().Add(-grace)) {
			continue
		}
		r.logger.Info("dangling machine: Nomad has no task for it", "machine", record.Machine, "dry_run", config.DryRun)
		if config.DryRun {
			continue
		}
		err := r.machines.RemoveDangling(ctx, record)
		if err == nil {
			r.Cancel(record.Machine)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dangling reports whether a machine without a known task may be removed. It may
// if
//   - an earlier removal failed; or
//   - it has no unit: it cannot be running, and a start in progress holds its lock; or
//   - it was started before a time, this plugin too, and it belongs to this node or
//     its allocation's directory is gone.
//
// Machines of another client on this host carry another node ID. We learn our own
// node ID from the first task.
func (r *Reaper) dangling(record nspawn.Record, nodes map[string]bool, before time.Time) bool {
	if _, ok := r.unfinished.Load(record.Machine); ok || record.Invocation == "" {
		return true
	}
	if !record.Started.Before(before) || !r.began.Before(before) {
		return false
	}
	node, dir := record.Fields[job.NodeIDField], record.Fields[job.AllocDirField]
	return node != "" && nodes[node] || dir != "" && missing(dir)
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}
