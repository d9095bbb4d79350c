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

// stateVersion is the version of TaskState. It is written for whoever debugs a
// state: no version is refused.
const stateVersion = 1

// TaskState is what Nomad keeps of a task over restarts of the agent, beside
// its TaskConfig without the driver's own block. The machine's name follows
// from the task; what is here cannot be found again otherwise.
//
// It only ever grows, because a plugin adopts the tasks of any older plugin, and
// after a downgrade those of a newer one. No field changes its name, type or
// meaning. The zero value of a new field means what plugins did without it.
type TaskState struct {
	// BootID tells a machine that ended from one lost in a reboot.
	BootID string
	Mode   machine.Mode
	// Notifies says that the guest tells when it is ready.
	Notifies bool
	// StopSignal is what the image wants to be stopped with; it may be empty.
	StopSignal string
	// How the payload runs, for processes that join it, and for a guest that reboots. A
	// task that was started before there were gates has no Command, and needs none.
	Command          []string
	Environment      map[string]string
	User             string
	WorkingDirectory string
	// Network is how the machine is connected, by a driver that does so itself.
	Network NetworkState
}

// begin is how the payload begins again. Only a guest that reboots does so, and it
// configures its network itself.
func (s TaskState) begin() nspawn.Begin {
	return nspawn.Begin{Instructions: machine.Spec{
		Mode: s.Mode, Command: s.Command, Environment: s.Environment, User: s.User, WorkingDirectory: s.WorkingDirectory,
	}.Instructions()}
}

// taskHandle is a task that this plugin started or recovered.
type taskHandle struct {
	config  *drivers.TaskConfig
	state   TaskState
	machine string
	started atomic.Pointer[time.Time]
	refused atomic.Bool // StopTask has refused a signal
	// disconnect ends what looks after the network.
	disconnect atomic.Pointer[context.CancelFunc]

	// stopping ends the processes that have entered a booted machine: one that
	// ignores signals would hold up the shutdown of its system.
	stopping context.Context
	stop     context.CancelFunc

	done chan struct{} // closed when the machine has ended
	// Written before done is closed, read after.
	exit   nspawn.Exit
	result *drivers.ExitResult
	ended  time.Time
}

// newHandle returns the handle of a task. The task counts as started now, until
// its machine has been looked at.
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

// end records how the machine ended, or why that is not known.
func (h *taskHandle) end(exit nspawn.Exit, err error, at time.Time) {
	h.stop()
	if disconnect := h.disconnect.Load(); disconnect != nil {
		(*disconnect)()
	}
	h.exit, h.result, h.ended = exit, exitResult(exit, err), at
	close(h.done)
}

// status is what InspectTask reports.
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

// tasks are the handles by task ID. The zero value is ready.
type tasks struct {
	handles sync.Map
	nodes   sync.Map // of all tasks there were
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

// known returns the machines of the tasks, and the nodes of these tasks and of the
// ones before them.
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
