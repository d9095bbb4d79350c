package job

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// processOptions say as whom and where the command runs.
type processOptions struct {
	User             string `codec:"user"`
	WorkingDirectory string `codec:"working_directory"`
}

var processSchema = schema.Options{
	"user":              schema.Attr("user", "string"),
	"working_directory": schema.Attr("working_directory", "string"),
}

func (c TaskConfig) validateProcess() error {
	return schema.Absolute("working_directory", c.WorkingDirectory)
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
	if id, ok := outOfRange(spec.User); ok {
		return fmt.Errorf("user: a container has the IDs 0 to %d, but not %s of user %q", maxID, id, spec.User)
	}
	spec.WorkingDirectory = cmp.Or(c.WorkingDirectory, in.Image.Config.WorkingDir)
	return nil
}

// maxID is the highest UID and GID of a container.
const maxID = 65535

// outOfRange returns the part of USER[:GROUP] that is a number which no container has.
func outOfRange(user string) (id string, ok bool) {
	for part := range strings.SplitSeq(user, ":") {
		n, err := strconv.ParseUint(part, 10, 64)
		if err == nil && n > maxID || errors.Is(err, strconv.ErrRange) {
			return part, true
		}
	}
	return "", false
}
