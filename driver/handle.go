package driver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/machine"
)

// stateVersion is the version of TaskState. It is only for people who debug a state: no
// version is refused.
const stateVersion = 1

// TaskState is what Nomad keeps of a task across restarts of the agent, in addition to its
// TaskConfig without the driver's own block. The machine's name follows from the task.
// TaskState has what cannot be found out again.
//
// It may only grow, because a plugin adopts the tasks of older plugins, and after a
// downgrade those of newer ones. No field may change its name, type or meaning. The zero
// value of a new field means what plugins did without it.
type TaskState struct {
	// BootID distinguishes a machine that ended from one that was lost in a reboot.
	BootID string
	Mode   machine.Mode
	// Notifies means that the guest reports when it is ready.
	Notifies bool
	// StopSignal is the image's stop signal, or "".
	StopSignal string
	// How the payload runs, for processes that join it, and for a guest that reboots. A
	// task of a version without gates has no Command, and needs none.
	Command          []string
	Environment      map[string]string
	User             string
	WorkingDirectory string
	// Sysctls are set again when a guest reboots.
	Sysctls map[string]string
	// Network is the machine's connection, if the driver has made it.
	Network NetworkState
}

// begin returns how the payload begins again. That happens only when a guest reboots, and
// a guest configures its network itself.
func (s TaskState) begin() nspawn.Begin {
	return nspawn.Begin{Instructions: machine.Spec{
		Mode: s.Mode, Command: s.Command, Environment: s.Environment, User: s.User, WorkingDirectory: s.WorkingDirectory,
	}.Instructions(), Sysctls: s.Sysctls}
}

// taskHandle is a task that this plugin started or recovered.
type taskHandle struct {
	config  *drivers.TaskConfig
	state   TaskState
	machine string
	started atomic.Pointer[time.Time]
	refused atomic.Bool // StopTask has refused a signal
	// disconnect ends the maintenance of the network.
	disconnect atomic.Pointer[context.CancelFunc]

	// stopping ends the processes that have entered a booted machine: a process that
	// ignores signals would delay the shutdown of its system.
	stopping context.Context
	stop     context.CancelFunc

	done chan struct{} // closed when the machine has ended
	// These are written before done is closed, and read after that.
	exit   nspawn.Exit
	result *drivers.ExitResult
	ended  time.Time
}

// newHandle returns the handle of a task. Until its machine has been looked at, the task
// counts as started now.
func newHandle(config *drivers.TaskConfig, state TaskState) *taskHandle {
	stopping, stop := context.WithCancel(context.Background())
	h := &taskHandle{
		stopping: stopping,
		stop:     stop,
		config:   config,
		state:    state,
		machine:  machine.Name(config.AllocID, config.Name),
		done:     make(chan struct{}),
	}
	h.begin(time.Now())
	return h
}

// begin records when the machine has started.
func (h *taskHandle) begin(at time.Time) { h.started.Store(&at) }

// end records how the machine ended, or why that is unknown.
func (h *taskHandle) end(exit nspawn.Exit, err error, at time.Time) {
	h.stop()
	if disconnect := h.disconnect.Load(); disconnect != nil {
		(*disconnect)()
	}
	h.exit, h.result, h.ended = exit, exitResult(exit, err), at
	close(h.done)
}

// status returns the result of InspectTask.
func (h *taskHandle) status() *drivers.TaskStatus {
	status := &drivers.TaskStatus{
		ID:               h.config.ID,
		Name:             h.config.Name,
		State:            drivers.TaskStateRunning,
		StartedAt:        *h.started.Load(),
		DriverAttributes: map[string]string{"machine": h.machine, "unit": machine.UnitName(h.machine)},
	}
	if h.hasEnded() {
		status.State = drivers.TaskStateExited
		status.CompletedAt = h.ended
		status.ExitResult = h.result.Copy()
	}
	return status
}

// tasks has the handles by task ID. The zero value can be used.
type tasks struct {
	handles sync.Map
	nodes   sync.Map // the nodes of all tasks so far
}

func (t *tasks) add(h *taskHandle) {
	t.handles.Store(h.config.ID, h)
	t.nodes.Store(h.config.NodeID, true)
}

func (t *tasks) remove(id string) { t.handles.Delete(id) }

func (t *tasks) get(id string) (*taskHandle, bool) {
	value, ok := t.handles.Load(id)
	if !ok {
		return nil, false
	}
	return value.(*taskHandle), true
}

// hasEnded reports whether the machine has ended.
func (h *taskHandle) hasEnded() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// known returns the machines of the tasks, and the nodes of all tasks so far.
func (t *tasks) known() (machines, nodes map[string]bool) {
	machines, nodes = map[string]bool{}, map[string]bool{}
	t.handles.Range(func(_, value any) bool {
		h := value.(*taskHandle)
		machines[h.machine] = true
		return true
	})
	t.nodes.Range(func(node, _ any) bool {
		nodes[node.(string)] = true
		return true
	})
	return machines, nodes
}
