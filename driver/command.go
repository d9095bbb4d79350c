package driver

import (
	"fmt"
	"slices"
	"strings"
)

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
			return nil, false, fmt.Errorf("command: a string or a list of strings is required")
		}
		return []string{word}, false, nil
	}
	for i, item := range items {
		word, err := scalar(item)
		if err != nil {
			return nil, true, fmt.Errorf("command[%d]: %w", i, err)
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
	return "", fmt.Errorf("a string is required")
}

// initArguments says whether a command is meant for the image's init, as in
// `command = ["--unit=rescue.target"]`: options and assignments, no program.
func initArguments(command []string) bool {
	return !slices.ContainsFunc(command, func(word string) bool {
		return !strings.HasPrefix(word, "-") && (!strings.Contains(word, "=") || strings.Contains(word, "/"))
	})
}
