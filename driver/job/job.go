// Package job turns what a job says, as far as the operator allows it, into the
// description of a machine. It is pure: it reads no file, asks no service and
// resolves no path of the host. What has to be looked up first comes in by Input.
//
// Each feature is one file. The file holds the options as a struct with codec
// tags, their schema, their validation and their translation. TaskConfig only puts
// the features together.
package job

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/names"
)

// TaskConfig is the `config` block of a task. A nil pointer is an option that the
// job does not set, where that differs from the option's zero value.
type TaskConfig struct {
	imageOptions
	loggingOptions
	nameOptions
	commandOptions
	rootOptions
	mountOptions
	networkOptions
	portOptions
	limitOptions
	isolationOptions
	ioOptions
	deviceOptions
	credentialOptions
	dockerOptions
	olderOptions
}

// TaskSchema is the schema of TaskConfig.
var TaskSchema = schema.Merge(
	imageSchema, loggingSchema, nameSchema, commandSchema, rootSchema,
	mountSchema, networkSchema, portSchema, isolationSchema, limitSchema, ioSchema,
	deviceSchema, credentialSchema, dockerSchema, olderSchema,
)

// Validate reports every mistake that the block shows by itself, all at once.
func (c TaskConfig) Validate() error {
	return errors.Join(
		c.validateImage(),
		c.validateLogging(),
		c.validateNames(),
		c.validateRoot(),
		c.validateCommand(),
		c.validateMounts(),
		c.validateLimits(),
		c.validateIsolation(),
		c.validateIO(),
		c.validateDevices(),
		c.validateCredentials(),
		c.validateDocker(),
		c.validateOlder(),
	)
}

// Input is what a machine is made of beside the options of its job.
type Input struct {
	Policy operator.Policy
	Task   *drivers.TaskConfig // as Nomad gives it
	Image  Image
	// DNS is what the host's files say about names.
	DNS names.Host
	// HostIP turns the address that Nomad gives with a port into the only one of the
	// host that forwards, or an invalid one for all.
	HostIP func(netip.Addr) (netip.Addr, error)
	// Cores is how many the client has, and Controllers are those of control groups
	// that its kernel offers.
	Cores       int
	Controllers []string
	// MaxFiles is how many files the kernel lets a process open at most (fs.nr_open).
	MaxFiles uint64
}

// Spec returns the machine that the job asks for. Every option that cannot be
// given is refused by name, all of them at once: nothing that a job asks for is
// silently ignored.
func (c TaskConfig) Spec(in Input) (machine.Spec, error) {
	if err := errors.Join(c.Validate(), checkTaskName(in.Task.Name)); err != nil {
		return machine.Spec{}, err
	}
	spec := machine.Spec{
		Machine:       machine.Name(in.Task.AllocID, in.Task.Name),
		Description:   Description(in.Task),
		JournalFields: JournalFields(in.Task),
		UUID:          machineID(in.Task.AllocID),
		Mode:          c.Mode(),
	}
	var found schema.Mistakes
	// A later feature may look at what an earlier one has decided.
	for _, apply := range []func(Input, *machine.Spec) error{
		c.applyImage,
		c.applyNetwork,
		c.applyMounts,
		c.applyCommand,
		c.applyLimits,
		c.applyIO,
		c.applyIsolation,
		c.applyRoot,
		c.applyLogging,
		c.applyDevices,
		c.applyCredentials,
		c.applyNames,
	} {
		found.Add(apply(in, &spec))
	}
	if err := cmp.Or(found.Err(), spec.Check()); err != nil {
		return machine.Spec{}, err
	}
	return spec, nil
}

// checkTaskName refuses names of which Nomad makes the directory of the allocation, or
// of all allocations, the task's own: relative paths would lead anywhere in it. Nomad
// itself refuses those with a slash.
func checkTaskName(name string) error {
	if name == "." || name == ".." || strings.Contains(name, "/") {
		return fmt.Errorf("%q is no name of a task: the task's directory would be one of others; give it a name of letters", name)
	}
	return nil
}
