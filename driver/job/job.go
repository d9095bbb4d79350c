// Package job turns the options of a job, as far as the operator allows them, into the
// description of a machine. It is pure: it reads no file, calls no service and resolves no
// path of the host. What must be looked up first is passed as Input.
//
// Each feature is one file. The file has the options as a struct with codec tags, their
// schema, their validation and their translation. TaskConfig only combines the features.
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

// TaskConfig is the `config` block of a task. An option is a pointer if leaving it out
// differs from its zero value.
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

// Validate returns every mistake that can be seen in the block alone, all at once.
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

// Input is what a machine is made of, besides the options of its job.
type Input struct {
	Policy operator.Policy
	Task   *drivers.TaskConfig // Nomad's description of the task
	Image  Image
	// DNS is what the host's files say about name resolution.
	DNS names.Host
	// HostIP converts the address that Nomad assigns to a port into the only address of
	// the host on which the port is forwarded. An invalid address means all of them.
	HostIP func(netip.Addr) (netip.Addr, error)
	// Cores is the number of cores of the client. Controllers are the cgroup controllers
	// that its kernel offers.
	Cores       int
	Controllers []string
	// MaxFiles is the largest number of open files that the kernel allows a process
	// (fs.nr_open).
	MaxFiles uint64
}

// Spec returns the machine that the job asks for. It refuses by name every option that
// cannot be fulfilled, all at once: nothing that a job asks for is silently ignored.
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
	// A later feature may use what an earlier one has decided.
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

// checkTaskName refuses names for which Nomad would use the directory of the allocation,
// or of all allocations, as the task's own. Relative paths could lead anywhere in it.
func checkTaskName(name string) error {
	if name == "." || name == ".." || strings.Contains(name, "/") {
		return fmt.Errorf("%q is no name of a task: the task's directory would be one of others; give it a name of letters", name)
	}
	return nil
}
