BEGIN TRANSACTION;
CREATE TABLE blocks (
	generation INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	nbytes INTEGER NOT NULL, 
	PRIMARY KEY (generation, ordinal)
);
INSERT INTO "blocks" VALUES(0,0,'dc300babb502ed9dc970de369e9555c118d41421a75f7a56087544e8109223c7',664);
INSERT INTO "blocks" VALUES(0,1,'843be6f50fd50e99f4cf13e12198b94e86f935294b3e59d0aa0623bb911ddd6a',664);
CREATE TABLE cursors (
	name VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE entries (
	version_from INTEGER NOT NULL, 
	task VARCHAR NOT NULL, 
	version_until INTEGER, 
	digest VARCHAR NOT NULL, 
	nbytes INTEGER NOT NULL, 
	labels JSON NOT NULL, 
	PRIMARY KEY (version_from, task)
);
INSERT INTO "entries" VALUES(1,'spam',NULL,'b2a588364d410c1f6f3ec3733f7c0114babdcb821ff6dee1c818e478f206ad7b',472,'["no", "yes"]');
INSERT INTO "entries" VALUES(2,'topics',NULL,'90c8098c234ce40f24878982aa89cbdc3c2ab288fff78da4f8c85a49208f0f00',536,'["no", "yes"]');
CREATE TABLE federation (
	id VARCHAR NOT NULL, 
	schema INTEGER NOT NULL, 
	spec VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "federation" VALUES('d55821ec725a4f3a8491ea9f554ea6cc',1,'{
  "federationId": "d55821ec725a4f3a8491ea9f554ea6cc",
  "name": "small",
  "base": {
    "name": "none",
    "fingerprint": "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
  },
  "modules": [
    {
      "name": "encoder.a",
      "outFeatures": 12,
      "inFeatures": 10
    },
    {
      "name": "encoder.b",
      "outFeatures": 8,
      "inFeatures": 16
    }
  ],
  "rank": 4,
  "tolerance": 1e-05,
  "seed": "7",
  "directions": {
    "first": 4,
    "later": 2,
    "basisTarget": 8
  },
  "recipe": {
    "epochs": 1.0,
    "batchSize": 8,
    "tokensMax": 16
  }
}');
CREATE TABLE journal (
	position INTEGER NOT NULL, 
	update_id VARCHAR NOT NULL, 
	worker VARCHAR NOT NULL, 
	incarnation INTEGER NOT NULL, 
	task VARCHAR NOT NULL, 
	base_version INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	nbytes INTEGER NOT NULL, 
	labels JSON NOT NULL, 
	metrics JSON NOT NULL, 
	received_at FLOAT NOT NULL, 
	PRIMARY KEY (position), 
	UNIQUE (update_id)
);
INSERT INTO "journal" VALUES(1,'0e452b3ed317490b88e970f2dd44d1a0','ann',1,'spam',0,'b4edb1092583d3e6d89b269f0a59208e3e89726fb9fcc66dd86e7a353587ffac',1120,'["no", "yes"]','{"accuracy_when_learned": 0.5}',1.79547628784305739408e+09);
INSERT INTO "journal" VALUES(2,'f8b05508f6434e30923fe2cc0d72c093','bob',1,'topics',0,'222afabae05aa5cbd6b42dc79e86870d22e91ea3cf4acc6fefff1a8d1424ed58',1120,'["no", "yes"]','{"accuracy_when_learned": 0.5}',1.79547628793543481828e+09);
INSERT INTO "journal" VALUES(3,'1e65949791c14666962b06127e2486e3','bob',1,'topics',0,'7a097fe015d13d4b6d80b238718d86789ddec1eaa5b2495ca2d485503baa97e4',1120,'["no", "yes"]','{"accuracy_when_learned": 0.5}',1.79547628874941372868e+09);
CREATE TABLE members (
	worker VARCHAR NOT NULL, 
	task VARCHAR NOT NULL, 
	incarnation INTEGER NOT NULL, 
	joined_at FLOAT NOT NULL, 
	left_at FLOAT, 
	PRIMARY KEY (worker)
);
INSERT INTO "members" VALUES('ann','spam',1,1.79547628777409672739e+09,1.79547628801066350935e+09);
INSERT INTO "members" VALUES('bob','topics',1,1.79547628778249502177e+09,NULL);
CREATE TABLE metrics (
	id INTEGER NOT NULL, 
	worker VARCHAR NOT NULL, 
	task VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	value FLOAT NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "metrics" VALUES(1,'ann','spam',1,'accuracy',0.75,1.79547628800383543968e+09);
INSERT INTO "metrics" VALUES(2,'ann','spam',2,'accuracy',0.75,1.79547628800846815113e+09);
CREATE TABLE verdicts (
	position INTEGER NOT NULL, 
	outcome INTEGER NOT NULL, 
	version INTEGER NOT NULL, 
	reason VARCHAR NOT NULL, 
	decided_at FLOAT NOT NULL, 
	PRIMARY KEY (position), 
	FOREIGN KEY(position) REFERENCES journal (position)
);
INSERT INTO "verdicts" VALUES(1,2,1,'',1.79547628786646866795e+09);
INSERT INTO "verdicts" VALUES(2,2,2,'',1.79547628795164370537e+09);
CREATE TABLE versions (
	version INTEGER NOT NULL, 
	parent INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	position INTEGER, 
	blocks INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	record JSON NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (version), 
	UNIQUE (position)
);
INSERT INTO "versions" VALUES(0,0,0,NULL,0,'98deb2481a51658e6b5dd7b051297d8cc948e1ae960f3bdf91858dad73f8074d','{"position": 0, "task": "", "worker": "", "update_id": "", "base_version": 0, "staleness": 0, "relative_error": 0.0, "relative_error_max": 0.0, "new_out": 0, "new_in": 0, "basis_out": 0, "basis_in": 0, "bytes_sent": 0, "bytes_lora": 0, "metrics": {}}',1.79547628772446942325e+09);
INSERT INTO "versions" VALUES(1,0,0,1,1,'a2c758d3a93461d8c394921a004fbc3de6693b869cc76879cbc5bc4d26e6d986','{"position": 1, "task": "spam", "worker": "ann", "update_id": "0e452b3ed317490b88e970f2dd44d1a0", "base_version": 0, "staleness": 0, "relative_error": 2.8242334887310558e-08, "relative_error_max": 3.0555932116517386e-08, "new_out": 2, "new_in": 2, "basis_out": 2, "basis_in": 2, "bytes_sent": 1120, "bytes_lora": 784, "metrics": {"accuracy_when_learned": 0.5}}',1.79547628786646866795e+09);
INSERT INTO "versions" VALUES(2,1,0,2,2,'4a10a5f25c5b79f1d22ec6f2773c479ff2f64ac33a445724ffea1b097803bf8d','{"position": 2, "task": "topics", "worker": "bob", "update_id": "f8b05508f6434e30923fe2cc0d72c093", "base_version": 0, "staleness": 1, "relative_error": 6.124581629564565e-08, "relative_error_max": 6.734198304343038e-08, "new_out": 2, "new_in": 2, "basis_out": 4, "basis_in": 4, "bytes_sent": 1120, "bytes_lora": 784, "metrics": {"accuracy_when_learned": 0.5}}',1.79547628795164370537e+09);
CREATE INDEX journal_by_task ON journal (task, worker);
CREATE INDEX entries_by_task ON entries (task, version_from);
COMMIT;
