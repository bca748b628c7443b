/** The layers, as `nn`. */
export { Module } from '../module.js';
export { ModuleList } from '../module-list.js';
export { Parameter } from '../parameter.js';
export * from './activation.js';
export * from './conv1d.js';
export * from './embedding.js';
export { type FactoryOptions, manualSeed } from './init.js';
export * from './linear.js';
export * from './norm.js';
export * from './sequential.js';
