BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('5');
CREATE TABLE blocks (
	generation INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	nbytes INTEGER NOT NULL, 
	PRIMARY KEY (generation, ordinal)
);
INSERT INTO "blocks" VALUES(0,0,'a95dae7c7c36e19f9637e4805a31f3a267c5a6fd2c505ee0985f6835d0064c9e',1032);
INSERT INTO "blocks" VALUES(0,1,'0cf667020c370aab752fd966677b7a0394db266566a91a3e5dd20615bfa231bc',664);
CREATE TABLE commands (
	position INTEGER NOT NULL, 
	request VARCHAR NOT NULL, 
	PRIMARY KEY (position), 
	FOREIGN KEY(position) REFERENCES journal (position)
);
INSERT INTO "commands" VALUES(5,'{
  "commandId": "864d1782337e490fb4739429442de671",
  "collect": {
    "keep": 1
  }
}');
CREATE TABLE cursors (
	name VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE "entries" (
	version_from INTEGER NOT NULL, 
	task VARCHAR NOT NULL, 
	version_until INTEGER, 
	digest VARCHAR NOT NULL, 
	nbytes INTEGER NOT NULL, 
	labels JSON NOT NULL, 
	norm FLOAT NOT NULL, 
	error FLOAT NOT NULL, 
	loose FLOAT NOT NULL, 
	is_bound BOOLEAN NOT NULL, 
	PRIMARY KEY (version_from, task)
);
INSERT INTO "entries" VALUES(1,'sum',NULL,'a8fbb0bf703e1cd6f15100f86d967f0f60c8ff151009f74be1be6bb56380cb39',672,'["no", "yes"]',1.53773947634020053949e+01,1.21562063672538054649e-06,0.0,0);
INSERT INTO "entries" VALUES(2,'other',NULL,'5d51650d3b5f4e95112f1d31f5953968665d705a10da0b1754e949cd6e530517',600,'["no", "yes"]',1.62347509492745913917e+01,1.32900335533803591679e-06,0.0,0);
CREATE TABLE "federation" (
	id VARCHAR NOT NULL, 
	spec VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "federation" VALUES('82cce2fa27d54f2fbc7be576a5d66733','{
  "federationId": "82cce2fa27d54f2fbc7be576a5d66733",
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
  },
  "policies": [
    {
      "task": "sum",
      "kind": "POLICY_KIND_FEDBUFF",
      "mixing": 1.0,
      "bufferSize": 2
    }
  ]
}');
CREATE TABLE gone (
	version INTEGER NOT NULL, 
	why VARCHAR NOT NULL, 
	PRIMARY KEY (version), 
	FOREIGN KEY(version) REFERENCES versions (version)
);
INSERT INTO "gone" VALUES(1,'collected');
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
INSERT INTO "journal" VALUES(1,'8a267acffb2f4b20b347190c7f089b65','ann',1,'sum',0,'492af01459b6aaff631996a468ca9c30e4504cce4480fff6a0c24b90932a7756',1120,'["no", "yes"]','{"accuracy_when_learned": 0.5}',1.79557907896479797358e+09);
INSERT INTO "journal" VALUES(2,'2c58f8dc3c0d4d86aea8f0021d2228fd','bob',1,'sum',0,'44b03d18c3cdfd6d7a1d0822c6b7af114c4cda8b230a298970b1513953ce5ca8',1120,'["no", "yes"]','{"accuracy_when_learned": 0.5}',1.79557907903316783899e+09);
INSERT INTO "journal" VALUES(3,'25905989f1af4446801fd14ed5651ded','cid',1,'sum',1,'77a3929ea30fc82f79a41fad8d820f5bfc0074af0c9ad122ab7307b58fdc6b52',1256,'["no", "yes"]','{"accuracy_when_learned": 0.5}',1.79557907910325551033e+09);
INSERT INTO "journal" VALUES(4,'71220c61da3d47539462bf1f639ae6c6','other-worker',1,'other',0,'546d710f803fc4c708d54957eb77d89b21a5f7549257aca2df78c8f9a09816aa',1120,'["no", "yes"]','{"accuracy_when_learned": 0.5}',1.79557907917029714586e+09);
INSERT INTO "journal" VALUES(5,'864d1782337e490fb4739429442de671','',0,'',0,'6467dffd5b6d0888773d3215ceb3adde47864283d39408a870abcc69f8cb1d43',38,'[]','{}',1.79557907922842979429e+09);
CREATE TABLE lease (
	id INTEGER NOT NULL, 
	token INTEGER NOT NULL, 
	holder VARCHAR NOT NULL, 
	beats INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "lease" VALUES(1,2,'process 1 on a machine',1);
CREATE TABLE members (
	worker VARCHAR NOT NULL, 
	task VARCHAR NOT NULL, 
	incarnation INTEGER NOT NULL, 
	joined_at FLOAT NOT NULL, 
	left_at FLOAT, 
	PRIMARY KEY (worker)
);
INSERT INTO "members" VALUES('ann','sum',1,1.79557907894401860239e+09,NULL);
INSERT INTO "members" VALUES('bob','sum',1,1.79557907902324795723e+09,NULL);
INSERT INTO "members" VALUES('cid','sum',1,1.79557907909008574484e+09,NULL);
INSERT INTO "members" VALUES('other-worker','other',1,1.79557907916058754919e+09,NULL);
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
CREATE TABLE past_verdicts (
	position INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	outcome INTEGER NOT NULL, 
	version INTEGER NOT NULL, 
	reason VARCHAR NOT NULL, 
	decided_at FLOAT NOT NULL, 
	PRIMARY KEY (position, ordinal), 
	FOREIGN KEY(position) REFERENCES journal (position)
);
INSERT INTO "past_verdicts" VALUES(1,0,7,0,'with 1 of 2 contributions to its task',1.79557907898114252091e+09);
CREATE TABLE restated (
	position INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	nbytes INTEGER NOT NULL, 
	PRIMARY KEY (position), 
	FOREIGN KEY(position) REFERENCES journal (position)
);
INSERT INTO "restated" VALUES(3,'f27db4f4c3e7dcf89ddbe4a0e86f1a5467c0ae5dd8a20603e42857fbbc585e39',2384);
CREATE TABLE verdicts (
	position INTEGER NOT NULL, 
	outcome INTEGER NOT NULL, 
	version INTEGER NOT NULL, 
	reason VARCHAR NOT NULL, 
	decided_at FLOAT NOT NULL, 
	PRIMARY KEY (position), 
	FOREIGN KEY(position) REFERENCES journal (position)
);
INSERT INTO "verdicts" VALUES(1,2,1,'',1.79557907905446219442e+09);
INSERT INTO "verdicts" VALUES(2,2,1,'',1.79557907905446219442e+09);
INSERT INTO "verdicts" VALUES(3,7,0,'with 1 of 2 contributions to its task',1.79557907911905503275e+09);
INSERT INTO "verdicts" VALUES(4,2,2,'',1.79557907918684673308e+09);
INSERT INTO "verdicts" VALUES(5,6,0,'1 versions up to 1 were collected; 1 updates stated anew',1.79557907924815297125e+09);
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
INSERT INTO "versions" VALUES(0,0,0,NULL,0,'e68df69de951ddd95d56d20a36f8e0031018622e079f6b5309dbe1ea4fafa149','[]',1.79557907880407214163e+09);
INSERT INTO "versions" VALUES(1,0,0,2,1,'a1e41d2466cbd0baf8ba7f1228cb77f3dc44082068b438f8628e35bfadd0a2cb','[{"position": 1, "task": "sum", "worker": "ann", "update_id": "8a267acffb2f4b20b347190c7f089b65", "base_version": 0, "staleness": 0, "relative_error": 7.905244389111616e-08, "relative_error_max": 8.775982984966279e-08, "new_out": 4, "new_in": 4, "basis_out": 4, "basis_in": 4, "bytes_sent": 1120, "bytes_lora": 784, "metrics": {"accuracy_when_learned": 0.5}, "kind": 1, "note": "", "weight": 1.0, "norm": 20.16654576506583, "largest_error": 7.905244389111616e-08}, {"position": 2, "task": "sum", "worker": "bob", "update_id": "2c58f8dc3c0d4d86aea8f0021d2228fd", "base_version": 0, "staleness": 0, "relative_error": 7.905244389111616e-08, "relative_error_max": 8.775982984966279e-08, "new_out": 4, "new_in": 4, "basis_out": 4, "basis_in": 4, "bytes_sent": 1120, "bytes_lora": 784, "metrics": {"accuracy_when_learned": 0.5}, "kind": 1, "note": "", "weight": 1.0, "norm": 24.394135955660584, "largest_error": 7.905244389111616e-08}]',1.79557907905446219442e+09);
INSERT INTO "versions" VALUES(2,1,0,4,2,'f60b04a3b54bc542f4848e2d315421d215989d881f71723488562f71e90f5a9b','[{"position": 4, "task": "other", "worker": "other-worker", "update_id": "71220c61da3d47539462bf1f639ae6c6", "base_version": 0, "staleness": 1, "relative_error": 8.186164108648793e-08, "relative_error_max": 9.029556074458637e-08, "new_out": 2, "new_in": 2, "basis_out": 6, "basis_in": 6, "bytes_sent": 1120, "bytes_lora": 784, "metrics": {"accuracy_when_learned": 0.5}, "kind": 1, "note": "", "weight": 1.0, "norm": 16.23475094927459, "largest_error": 8.186164108648793e-08}]',1.79557907918684673308e+09);
CREATE INDEX journal_by_task ON journal (task, worker);
CREATE INDEX entries_by_task ON entries (task, version_from);
COMMIT;
