package job

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

type commandOptions struct {
	Args       []string `codec:"args"`
	Boot       *bool    `codec:"boot"`
	Command    any      `codec:"command"`
	Entrypoint []string `codec:"entrypoint"`
	ProcessTwo *bool    `codec:"process_two"`
}

var commandSchema = schema.Options{
	"args":        schema.Attr("args", "list(string)"),
	"boot":        schema.Attr("boot", "bool"),
	"command":     schema.Attr("command", "any"),
	"entrypoint":  schema.Attr("entrypoint", "list(string)"),
	"process_two": schema.Attr("process_two", "bool"),
}

// Mode tells what the machine's PID 1 is. An image without a command is booted,
// unless the image says itself what is run, as those of registries do.
func (c TaskConfig) Mode() machine.Mode {
	command, _, _ := words(c.Command)
	boot := initArguments(command) && (len(command) > 0 || c.ImageKind() != OCIImage)
	if c.Boot != nil {
		boot = *c.Boot
	}
	switch {
	case boot:
		return machine.Boot
	case c.ProcessTwo != nil && !*c.ProcessTwo:
		return machine.ProcessOne
	}
	return machine.ProcessTwo
}

func (c TaskConfig) validateCommand() error {
	command, isList, err := words(c.Command)
	if err != nil {
		return err
	}
	var found schema.Mistakes
	oci := c.ImageKind() == OCIImage
	found.Unless(len(c.Args) == 0 || len(command) > 0 || oci, "args: there is no command to give them to")
	found.Unless(len(c.Args) == 0 || !isList, "args: put them into the list of command, or make command a string")
	if c.Mode() == machine.Boot {
		found.Unless(c.ProcessTwo == nil || !*c.ProcessTwo, "process_two: cannot be combined with boot")
		found.Unless(c.User == "", "user: cannot be combined with boot: the image's init is started as root")
		found.Unless(c.WorkingDirectory == "", "working_directory: cannot be combined with boot")
		found.Unless(len(command) == 0 || initArguments(command), "command: with boot these are arguments for the image's init, which %q is not: set boot = false to run it", first(command))
	} else {
		found.Unless(len(command) > 0 && command[0] != "" || len(command) == 0 && oci, "command: is required without boot")
	}
	return found.Err()
}

// applyCommand sets the command, or the arguments of the image's init. systemd
// and its journald read theirs there, as they read the kernel's command line
// elsewhere.
func (c TaskConfig) applyCommand(in Input, spec *machine.Spec) error {
	command, _, _ := words(c.Command)
	command = append(command, c.Args...)
	switch {
	case spec.Mode == machine.Boot:
		spec.Command = append(c.initArgs(), command...)
		return nil
	case c.ImageKind() != OCIImage:
		spec.Command = command
		return nil
	}
	spec.Command = in.Image.Config.Command(c.Entrypoint, command)
	if in.Image.Stored != "" && len(spec.Command) == 0 {
		return errors.New("command: is required: neither the image nor the job has one")
	}
	return nil
}

// initArgs go before those of the job, which can say otherwise.
func (c TaskConfig) initArgs() []string {
	// Nobody is there to answer what systemd-firstboot.service asks on the
	// console of an image without a machine ID, as mkosi makes it: the boot
	// would wait for ever.
	args := []string{"systemd.firstboot=no"}
	if c.ForwardJournal {
		args = append(args, "systemd.journald.forward_to_console=1")
	}
	return args
}

// words decodes the option `command`, which is a string, as docker takes it,
// or a list, as the community driver takes it.
func words(option any) (list []string, isList bool, err error) {
	if option == nil {
		return nil, false, nil
	}
	items, isList := option.([]any)
	if !isList {
		word, err := scalar(option)
		if err != nil {
			return nil, false, errors.New("command: a string or a list of strings is required")
		}
		return []string{word}, false, nil
	}
	for i, item := range items {
		word, err := scalar(item)
		if err != nil {
			return nil, true, fmt.Errorf("%s: %w", schema.At("command", i), err)
		}
		list = append(list, word)
	}
	return list, true, nil
}

// scalar converts as HCL does where a string is wanted.
func scalar(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case bool, int64, uint64, float64:
		return fmt.Sprint(v), nil
	}
	return "", errors.New("a string is required")
}

// initArguments reports whether a command is meant for the image's init, as in
// `command = ["--unit=rescue.target"]`: options and assignments, no program.
func initArguments(command []string) bool {
	return !slices.ContainsFunc(command, func(word string) bool {
		return !strings.HasPrefix(word, "-") && (!strings.Contains(word, "=") || strings.Contains(word, "/"))
	})
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
