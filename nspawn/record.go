package nspawn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Record describes what exists of a machine on the host.
type Record struct {
	Machine string
	// The following are about its unit. They are empty if there is no unit but only files,
	// because a start or a removal is in progress or was interrupted.
	Invocation string
	Started    time.Time
	Fields     map[string]string // Spec.JournalFields
}

// Machines returns the records of all machines of this driver on the host, of all plugins
// and agents: running, ended, or only files.
func (m *Manager) Machines(ctx context.Context) ([]Record, error) {
	names, err := m.names(ctx)
	if err != nil {
		return nil, err
	}
	var records []Record
	for _, name := range names {
		record, err := m.Record(ctx, name)
		switch {
		case errors.Is(err, ErrLost):
			records = append(records, Record{Machine: name})
		case err != nil:
			return nil, err
		default:
			records = append(records, record)
		}
	}
	return records, nil
}

// names returns the names of all machines that have a unit or another part.
func (m *Manager) names(ctx context.Context) ([]string, error) {
	units, err := m.bus.UnitsByPattern(ctx, machine.UnitName("*"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, unit := range units {
		if name, ok := machine.OfUnit(unit); ok {
			names = append(names, name)
		}
	}
	owners, err := m.parts.Owners()
	if err != nil {
		return nil, err
	}
	names = append(names, owners...)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Record returns the record of a machine's unit. The error is ErrLost if there is none.
func (m *Manager) Record(ctx context.Context, name string) (Record, error) {
	unit, err := m.unit(ctx, name)
	if err != nil {
		return Record{}, err
	}
	fields, err := m.bus.JournalFields(ctx, machine.UnitName(name))
	if errors.Is(err, systemd.ErrNotFound) {
		return Record{}, fmt.Errorf("machine %s: %w", name, ErrLost)
	}
	return Record{Machine: name, Invocation: unit.InvocationID, Started: unit.ExecMainStart, Fields: fields}, err
}
