package nspawn

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/gate"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/links"
)

// shortest returns the path of a program for x86-64 that exits with 7 and does nothing
// else.
func shortest(t *testing.T) string {
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: the program is for x86-64")
	}
	const base = 0x400000
	code := []byte{
		0xbf, 7, 0, 0, 0, // mov edi, 7
		0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
		0x0f, 0x05, // syscall
	}
	var file bytes.Buffer
	file.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, field := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + 120), uint64(64), uint64(0), uint32(0), // executable for x86-64, entry, program headers
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), uint64(120 + len(code)), uint64(120 + len(code)), uint64(4096), // PT_LOAD
		code,
	} {
		must.NoError(t, binary.Write(&file, binary.LittleEndian, field))
	}
	return file.String()
}

// load keeps the CPUs busy until the test ends.
func load(t *testing.T) {
	var stopped atomic.Bool
	t.Cleanup(func() { stopped.Store(true) })
	for range 2 * runtime.NumCPU() {
		go func() {
			for !stopped.Load() {
			}
		}()
	}
}

// TestHostShortestCommand checks that the start of a command succeeds, and that its exit
// code is known, even if it ends before anybody looks at it.
func TestHostShortestCommand(t *testing.T) {
	m := newManager(t)
	program := machine.File{Path: "/shortest", Content: shortest(t)}
	load(t)
	for n := range 12 {
		spec := newMachine(t, m, "")
		spec.Command, spec.Mode = []string{"/shortest"}, []machine.Mode{machine.ProcessOne, machine.ProcessTwo}[n%2]
		spec.Root.Files = []machine.File{program}
		var address netip.Addr
		steps := []Step{func(_ context.Context, waiting Waiting) error {
			return os.Chmod(fmt.Sprintf("/proc/%d/root%s", waiting.Leader, program.Path), 0o755)
		}}
		if n%4 < 2 {
			spec.Network.Kind = links.Veth
			steps = append(steps, vethStep(m, spec, &address))
		}
		out := mustStart(t, m, spec, steps...)
		must.Eq(t, Exit{Code: 7}, mustWait(t, m, spec.Machine))
		must.Eq(t, spec.Network.Kind == links.Veth, address.IsValid())
		for event := range out.events {
			must.NoError(t, event.Err)
		}
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
	}
}

// TestHostStepFails checks that nothing runs and nothing is left if a step fails.
func TestHostStepFails(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "echo ran")
		spec.Mode = mode
		broken := errors.New("a step is broken")
		out, err := start(t, m, spec, func(context.Context, Waiting) error { return broken })
		must.ErrorIs(t, err, broken)
		must.Eq(t, nil, traces(t, m, spec.Machine))
		must.Eq(t, "", <-out.stdout)
	}
}

func TestHostCannotBegin(t *testing.T) {
	m := newManager(t)
	for mode, code := range map[machine.Mode]int{machine.ProcessOne: 127, machine.ProcessTwo: 127, machine.Boot: 126} {
		spec := newMachine(t, m, "")
		spec.Mode, spec.Command = mode, []string{"/no/such"}
		spec.Root.Files = []machine.File{{Path: "/sbin/init"}} // not a program
		out, err := start(t, m, spec)
		var failure *inside.Failure
		must.True(t, errors.As(err, &failure), must.Sprint(err))
		must.Eq(t, code, failure.Code)
		must.Eq(t, nil, traces(t, m, spec.Machine))
		must.Eq(t, "", <-out.stdout)
	}
}

// TestHostRebootWithoutPlugin checks that a guest that reboots while there is no plugin
// waits for the next one.
func TestHostRebootWithoutPlugin(t *testing.T) {
	m := newManager(t)
	spec := newBooted(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	follower, err := m.Start(t.Context(), spec, func(string) {}, func() (Streams, error) { return Streams{}, nil })
	must.NoError(t, err)
	events := follower.Events(ctx)
	awaitEvent(t, output{events: events}, Ready)
	cancel() // the plugin ends
	for range events {
	}
	unit, err := m.unit(t.Context(), spec.Machine)
	must.NoError(t, err)
	payload, err := payloadOf(unit, spec.Mode)
	must.NoError(t, err)
	must.True(t, m.hasBegun(spec.Machine, spec.Mode, payload))
	must.NoError(t, payload.Signal(39)) // SIGRTMIN+5 reboots (systemd(1))
	for unit := range m.bus.WatchUnit(t.Context(), machine.UnitName(spec.Machine)) {
		if unit.NRestarts == 1 && unit.SubState == "running" {
			break
		}
	}
	awaitEvent(t, output{events: m.Follow(spec.Machine, spec.Mode, Begin{Instructions: spec.Instructions()}).Events(t.Context())}, Ready)
}

// TestHostPayloadAtTheGate checks that a payload that has begun is not admitted again, as
// the shim or otherwise.
func TestHostPayloadAtTheGate(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "exec "+inside.ShimPath+" "+inside.GateArg)
		spec.Mode = mode
		mustStart(t, m, spec)
		g, err := gate.Listen(m.dirs.Gate(spec.Machine))
		must.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err = g.Await(ctx, func(peer gate.Peer) error {
			defer cancel()
			_, _, err := m.admit(spec.Machine, mode, peer)
			must.ErrorContains(t, err, "has begun already")
			return err
		})
		must.ErrorIs(t, err, context.Canceled)
	}
}

// TestHostShimKeepsItsVariable checks that the payload does not get the variable that is
// meant for the shim, but gets the job's variable of that name.
func TestHostShimKeepsItsVariable(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		for want, environment := range map[string]map[string]string{"none\n": nil, "3\n": {"GOMAXPROCS": "3"}} {
			spec := newMachine(t, m, "echo ${GOMAXPROCS-none}")
			spec.Mode, spec.Environment = mode, environment
			out := mustStart(t, m, spec)
			must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
			must.EqOp(t, want, <-out.stdout)
		}
	}
}
