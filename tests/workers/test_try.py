import time
from parts import Coordinator
from fedshare.federation_file import read_federation_file
from coordinator.home import open_home
from workers.life import Life, Plan

def test_try(federation_toml, tasks, tmp_path):
    t=time.time()
    spec = read_federation_file(federation_toml).spec()
    with open_home(tmp_path/"home", spec): pass
    print("spec", time.time()-t); t=time.time()
    with Coordinator(tmp_path/"home") as c:
        print("start", time.time()-t); t=time.time()
        for task in ("colour","animal","number"):
            p=Plan(worker=task+"-w", task=task, source=str(tasks/task), address=c.address, home=tmp_path/task, patience_seconds=5)
            stages=[]
            print(Life(p, lambda q: stages.append(q.stage), lambda: False).lead())
            print(task, time.time()-t); t=time.time()
        with c.client() as cl:
            for m in cl.metrics(): print(m.task,m.version,m.name,m.value)
            print(cl.versions())
        print(c.stop(), time.time()-t)
        print(c.log())
