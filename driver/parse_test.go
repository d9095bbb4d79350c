package driver

import (
	"testing"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
)

func parseTask(t *testing.T, hcl string) (task job.TaskConfig) {
	hclutils.NewConfigParser(job.TaskSchema).ParseHCL(t, "config {\n"+hcl+"\n}", &task)
	return task
}

func parseConfig(t *testing.T, hcl string) (config operator.Config) {
	hclutils.NewConfigParser(operator.ConfigSchema).ParseHCL(t, "config {\n"+hcl+"\n}", &config)
	return config
}
