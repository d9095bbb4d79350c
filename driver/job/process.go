package job

import (
	"cmp"
	"fmt"

	"nomad-driver-nspawn/nspawn/machine"
)

// processOptions say as whom and where the command runs.
type processOptions struct {
	User             string `codec:"user"`
	WorkingDirectory string `codec:"working_directory"`
}

var processSchema = options{
	"user":              attr("user", "string"),
	"working_directory": attr("working_directory", "string"),
}

func (c TaskConfig) validateProcess() error {
	return absolute("working_directory", c.WorkingDirectory)
}

// applyProcess uses what the job says, else what the image says. Nomad's own
// `user` is for all drivers, the option is for this one.
func (c TaskConfig) applyProcess(in Input, spec *machine.Spec) error {
	boot := spec.Mode == machine.Boot
	switch {
	case c.User != "" && in.Task.User != "" && c.User != in.Task.User:
		return fmt.Errorf("user: %q differs from the task's user %q: set one of them", c.User, in.Task.User)
	case boot && in.Task.User != "":
		return fmt.Errorf("user: the task's user %q cannot be combined with boot", in.Task.User)
	case boot:
		return nil
	}
	spec.User = cmp.Or(c.User, in.Task.User, in.Image.Config.User)
	spec.WorkingDirectory = cmp.Or(c.WorkingDirectory, in.Image.Config.WorkingDir)
	return nil
}
