package job

import (
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"nomad-driver-nspawn/nspawn/machine"
)

type environmentOptions struct {
	Environment map[string]string `codec:"environment"`
}

var environmentSchema = options{"environment": stringMap("environment")}

func (c TaskConfig) validateEnvironment() error {
	var found mistakes
	for _, name := range slices.Sorted(maps.Keys(c.Environment)) {
		found.unless(machine.PossibleEnvironmentName(name), "environment: %q cannot be the name of a variable", name)
	}
	return found.err()
}

// applyEnvironment takes the variables of the image, of Nomad and of the job, each
// over the ones before.
func (c TaskConfig) applyEnvironment(in Input, spec *machine.Spec) error {
	env := map[string]string{}
	for _, variable := range in.Image.Config.Env {
		if name, value, ok := strings.Cut(variable, "="); ok && machine.PossibleEnvironmentName(name) {
			env[name] = value
		}
	}
	maps.Copy(env, in.Task.Env)
	maps.Copy(env, c.Environment)
	var found mistakes
	for _, name := range slices.Sorted(maps.Keys(env)) {
		switch {
		case !machine.PossibleEnvironmentName(name) || !utf8.ValidString(name):
			found.refuse("env: %q cannot be the name of a variable", name)
		case !utf8.ValidString(env[name]) || strings.Contains(env[name], "\x00"):
			found.refuse("env: the value of %q is not valid UTF-8", name)
		}
	}
	spec.Environment = env
	return found.err()
}
